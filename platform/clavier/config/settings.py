"""The one settings file. Every knob of an operator is an environment variable, read here and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import environ
from redis.backoff import ExponentialBackoff
from redis.connection import parse_url
from redis.retry import Retry

from clavier.config.environment import env_bool, env_choice, env_int, env_list, socket_folder, stored_secret

BASE_DIR = Path(__file__).resolve().parents[3]

env = environ.Env()

# --- where things lie -------------------------------------------------------------------------------------------
CLAVIER_HOME = Path(env.str("CLAVIER_HOME", default=str(BASE_DIR / "var"))).resolve()
CLAVIER_RUN_DIR = socket_folder(CLAVIER_HOME)
CLAVIER_FILES = CLAVIER_HOME / "files"
CLAVIER_DATASETS = CLAVIER_HOME / "datasets"
CLAVIER_RUNS = CLAVIER_HOME / "runs"
#: One archive per image id; beside the runs, whose output is linked into it.
CLAVIER_IMAGES = CLAVIER_HOME / "images"
#: Logins at registries, each in a file that one import reads.
CLAVIER_SECRETS = CLAVIER_HOME / "secrets"
CLAVIER_EXECUTOR_FOLDER = CLAVIER_HOME / "executors"

#: Uploads are spooled on the data file system, so that taking one over is a rename.
FILE_UPLOAD_TEMP_DIR = str(CLAVIER_HOME / "uploads")
Path(FILE_UPLOAD_TEMP_DIR).mkdir(parents=True, exist_ok=True)

# --- the process ------------------------------------------------------------------------------------------------
CLAVIER_ENVIRONMENT = env_choice("CLAVIER_ENVIRONMENT", "embedded", {"embedded", "production"})
DEBUG = env_bool("DEBUG", False)
SECRET_KEY = env.str("SECRET_KEY", default="") or stored_secret(CLAVIER_HOME / "secret_key")
ALLOWED_HOSTS = env_list("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]", "testserver"])
CSRF_TRUSTED_ORIGINS = env_list("CSRF_TRUSTED_ORIGINS", [])

INSTALLED_APPS = [
    "unfold",
    # The pages of operators are imported by urls.py: processes without pages start in half of the time.
    "django.contrib.admin.apps.SimpleAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "axes",
    "django_filters",
    "django_htmx",
    "django_rq",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "rest_framework",
    "clavier",
    "auditlog",
    "clavier.audit",
    "clavier.accounts",
    "clavier.files",
    "clavier.quotas",
    "clavier.runs",
    "clavier.images",
    "clavier.api.common",
    "clavier.api.legacy",
    "clavier.portal",
    "datasets_app",
    "models_app",
    "finetune_app",
    "evaluation_app",
    "inference_app",
    "runner.worker",
]

MIDDLEWARE = [
    "clavier.core.middleware.request_id",
    "clavier.core.middleware.client_address",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "clavier.audit.middleware.audit",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "axes.middleware.AxesMiddleware",
]

ROOT_URLCONF = "clavier.config.urls"
WSGI_APPLICATION = "clavier.config.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

# --- data -------------------------------------------------------------------------------------------------------
DATABASE_URL = env.str("DATABASE_URL", default=f"sqlite:///{CLAVIER_HOME / 'clavier.sqlite3'}")
DATABASES: dict[str, dict[str, Any]] = {"default": env.db_url_config(DATABASE_URL)}
DATABASES["default"].setdefault("CONN_MAX_AGE", 60)
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # IMMEDIATE takes the write lock at BEGIN: no "database is locked" in the middle of a transaction.
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
    }
else:
    DATABASES["default"].setdefault("CONN_HEALTH_CHECKS", True)
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_USER_MODEL = "accounts.User"

# --- queue ------------------------------------------------------------------------------------------------------
REDIS_URL = env.str("REDIS_URL", default="")
CLAVIER_REDIS_SOCKET = CLAVIER_RUN_DIR / "valkey.sock"
_REDIS_OPTIONS: dict[str, Any] = {
    # A Redis that restarts must not kill a worker or lose a job's result.
    "retry": Retry(ExponentialBackoff(cap=2, base=0.1), 60),
    "health_check_interval": 30,
}
RQ_QUEUES: dict[str, dict[str, Any]] = {
    "default": {"HOST": "localhost", "PORT": 0, "REDIS_CLIENT_KWARGS": _REDIS_OPTIONS}
}
if REDIS_URL:
    # django-rq ignores the client options of a URL, so its parts are given one by one.
    _parts: dict[str, Any] = dict(parse_url(REDIS_URL))  # type: ignore[no-untyped-call]
    RQ_QUEUES["default"] |= {"HOST": _parts.pop("host", "localhost"), "PORT": _parts.pop("port", 6379)}
    RQ_QUEUES["default"]["DB"] = _parts.pop("db", 0)
    RQ_QUEUES["default"] |= {name.upper(): _parts[name] for name in ("username", "password") if name in _parts}
    RQ_QUEUES["default"]["SSL"] = REDIS_URL.startswith("rediss:")
else:
    _REDIS_OPTIONS["unix_socket_path"] = str(CLAVIER_REDIS_SOCKET)
RQ_QUEUES["default"]["DEFAULT_TIMEOUT"] = 60
#: The short jobs of the queue, which a worker does itself, and what it does once before them.
QUEUE_JOBS = ("runner.worker.jobs.schedule", "runner.worker.jobs.launch")
QUEUE_GET_READY = "runner.worker.engines.get_ready"

# --- the Run engine ---------------------------------------------------------------------------------------------
CLAVIER_EXECUTOR = env_choice("CLAVIER_EXECUTOR", "local_process", {"local_process", "docker_engine", "fake"})
#: name -> class; imported by a system check at start.
EXECUTORS = {
    "local_process": "runner.executors.local_process.LocalProcessExecutor",
    "docker_engine": "runner.executors.docker_engine.DockerEngineExecutor",
    "fake": "runner.executors.fake.FakeExecutor",
}
#: Local programs are forks of a process that has made their imports; it ends so long after the last one. 0: none is.
WARM_START_IDLE_S = env_int("WARM_START_IDLE_S", 900, 0, 10**6)
#: Keyword arguments of an executor's class. Local programs see nothing of the platform's home but their own folders.
EXECUTOR_OPTIONS: dict[str, dict[str, Any]] = {
    "local_process": {"hidden": (CLAVIER_HOME,), "warm_idle_s": WARM_START_IDLE_S},
    "docker_engine": {
        # Marks our containers among those of others; it stays the same for the life of the installation.
        "install_id": stored_secret(CLAVIER_HOME / "install_id"),
        "engine_url": env.str("DOCKER_ENGINE_URL", default=""),
        "program_image": env.str("DOCKER_PROGRAM_IMAGE", default=""),
        "serve_image": env.str("DOCKER_SERVE_IMAGE", default=""),
        "program_python": env.str("DOCKER_PROGRAM_PYTHON", default="/usr/local/bin/python3"),
        "program_binds": tuple(env_list("DOCKER_PROGRAM_BINDS", [])),
        "wrapper": env.str("DOCKER_WRAPPER", default=""),
        "closed": (CLAVIER_HOME,),
        # An image of runner/dockerfiles brings the programs; otherwise this machine's own are bound into it.
        **({"repository": None} if env_bool("DOCKER_IMAGE_HAS_PROGRAMS", False) else {}),
    },
}
#: Executors that run images of users.
CONTAINER_EXECUTORS = ("docker_engine",)
#: Programs of users (not our recipes). Production refuses them without a container around them.
ALLOW_CUSTOM_CODE = env_bool("ALLOW_CUSTOM_CODE", CLAVIER_ENVIRONMENT != "production")
#: kind of a run -> the function that its domain wants called, inside the transaction that ends the run.
RUN_FINISHED_HOOKS = {
    "fine_tune": "finetune_app.finished.on_run_finished",
    "evaluation": "evaluation_app.services.on_run_finished",
    "model_import": "models_app.services.on_run_finished",
    "image_import": "clavier.images.services.on_run_finished",
    "data": "datasets_app.tasks.on_run_finished",
    "replica": "inference_app.services.on_run_finished",
}
#: Jobs of the queue that may take longer than a minute -> seconds.
LONG_JOBS = {"datasets_app.intake.take_in": 6 * 3600}
#: Called every few minutes: what a lost wake-up left waiting is woken again.
SWEEPS = (
    "datasets_app.intake.wake_waiting",
    "clavier.runs.folders.count_left_out",
    "clavier.files.uploads.remove_expired",
)
#: Called every few seconds.
WATCHES = ("finetune_app.pruning.prune_trials",)
RECONCILE_INTERVAL_S = float(env.str("RECONCILE_INTERVAL_S", default="1.0"))
#: After so long of failing to start, an attempt is given up and its run tried elsewhere.
LAUNCH_PATIENCE_S = env_int("LAUNCH_PATIENCE_S", 600, 1, 7 * 24 * 3600)
#: After so long of failing to take over what a run made (a disk that gives errors), the run fails.
END_PATIENCE_S = env_int("END_PATIENCE_S", 1800, 1, 7 * 24 * 3600)
#: Capacity of this machine that runs may hold; by default all of its cores and 90 % of its memory.
LOCAL_NODE_CPU_MILLI = env_int("LOCAL_NODE_CPU_MILLI", (os.cpu_count() or 1) * 1000, 100, 10_000_000)
LOCAL_NODE_MEMORY_MIB = env_int(
    "LOCAL_NODE_MEMORY_MIB",
    int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20 * 0.9),
    256,
    2**31,
)
DISK_RESERVE_MIB = env_int("DISK_RESERVE_MIB", 512, 0, 2**31)

# --- container images -------------------------------------------------------------------------------------------
#: What the engines run; images of another architecture are refused at import.
IMAGE_ARCHITECTURES = env_list(
    "IMAGE_ARCHITECTURES", [{"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)]
)
#: Of one image, as an archive and unpacked.
IMAGE_MAX_MIB = env_int("IMAGE_MAX_MIB", 40 * 1024, 1, 10**9)
#: Registries with a private address: host, host:port, or http://host:port for one without TLS. Public ones need none.
IMAGE_REGISTRIES_ALLOWED = env_list("IMAGE_REGISTRIES_ALLOWED", [])
#: Where references without a host are looked for; empty: nowhere.
IMAGE_DEFAULT_REGISTRY = env.str("IMAGE_DEFAULT_REGISTRY", default="")

# --- models and files -------------------------------------------------------------------------------------------
#: Folders of the server from which a tenant may register a base model in place.
MODEL_PATHS = [Path(path).resolve() for path in env_list("MODEL_PATHS", [])]
#: Hosts (with their port, where they name one) of the object stores from which models and data may be imported.
OBJECT_STORE_HOSTS = env_list("OBJECT_STORE_HOSTS", [])
#: Places with a private address, or without TLS, from which data may be fetched: host, host:port, http://host:port.
DATA_HOSTS_ALLOWED = env_list("DATA_HOSTS_ALLOWED", [])
HF_ENDPOINT = env.str("HF_ENDPOINT", default="https://huggingface.co")
MAX_UPLOAD_MIB = env_int("MAX_UPLOAD_MIB", 50 * 1024, 1, 10**9)
DEFAULT_STORAGE_MIB = env_int("DEFAULT_STORAGE_MIB", 100 * 1024, 1, 10**9)
DEFAULT_STORAGE_INODES = env_int("DEFAULT_STORAGE_INODES", 1_000_000, 1, 10**12)
#: A resumable upload to which nothing has come for so long is removed.
RESUMABLE_KEPT_S = env_int("RESUMABLE_KEPT_S", 7 * 24 * 3600, 60, 366 * 24 * 3600)
#: Resumable uploads that one user may have open at once.
MAX_OPEN_UPLOADS = env_int("MAX_OPEN_UPLOADS", 1000, 1, 10**6)
#: (scope, id of a tenant or user) -> its live attempts and what each of their containers holds.
LIVE_ATTEMPTS = "clavier.runs.queries.live_attempts_of"
#: What is charged for -> a function that yields (tenant, user, bytes, inodes) of it; the auditor adds them up.
STORAGE_LEDGERS = {
    "files": "clavier.files.usage.stored_files",
    "uploads": "clavier.files.uploads.open_uploads",
    "data sets": "datasets_app.queries.stored_versions",
    "images": "clavier.images.queries.stored_images",
    "runs": "clavier.runs.folders.stored_folders",
}
FILE_UPLOAD_HANDLERS = ["django.core.files.uploadhandler.TemporaryFileUploadHandler"]
FILE_UPLOAD_PERMISSIONS = 0o640
DATA_UPLOAD_MAX_MEMORY_SIZE = 16 * 2**20
#: A folder comes as one form: a file and a path for each.
DATA_UPLOAD_MAX_NUMBER_FILES = 10_000
DATA_UPLOAD_MAX_NUMBER_FIELDS = 10_100

# --- accounts ---------------------------------------------------------------------------------------------------
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 8}},
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
]
AXES_FAILURE_LIMIT = env_int("LOGIN_FAILURE_LIMIT", 10, 1, 10_000)
AXES_COOLOFF_TIME = 0.25  # hours
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_LOCKOUT_CALLABLE = "clavier.accounts.auth.locked_out_response"
AXES_VERBOSE = False
LOGIN_URL = "/accounts/login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/accounts/login"
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env_bool("SECURE_COOKIES", CLAVIER_ENVIRONMENT == "production")
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    # The admin theme evaluates small expressions in attributes and writes styles; nothing else may.
    "EXCLUDE_URL_PREFIXES": ("/admin/", "/api/docs", "/api/platform/docs"),
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "frame-ancestors": ["'none'"],
        "form-action": ["'self'"],
        "base-uri": ["'none'"],
    },
}

# --- audit log --------------------------------------------------------------------------------------------------
#: Every table that people change; new ones are in it without being named.
AUDITLOG_INCLUDE_ALL_MODELS = True
AUDITLOG_EXCLUDE_TRACKING_MODELS = (
    # What the machinery writes for itself.
    "admin",
    "auditlog",
    "axes",
    "contenttypes",
    "django_rq",
    "sessions",
    "api_native.IdempotentRequest",
    "evaluation_app.Score",
    "files.StorageUsage",
    "files.TenantStorage",
    "finetune_app.TrainingCalibration",
    "inference_app.Replica",
    "quotas.GpuBooking",
    "quotas.Reservation",
    "runs.Attempt",
    "runs.Lease",
    "runs.Outbox",
    "runs.RunEvent",
)
#: Long, derived, or possibly with secrets in them.
AUDITLOG_EXCLUDE_TRACKING_FIELDS = (
    "facts", "findings", "last_login", "last_used_at", "metrics", "own_code", "spec", "spec_digest", "statistics",
    "submitted", "updated_at", "used",
)  # fmt: skip
AUDITLOG_MASK_TRACKING_FIELDS = ("password", "digest", "access_key", "sealed_secret")
AUDITLOG_MASK_CALLABLE = "clavier.audit.records.mask"

# --- API --------------------------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "clavier.accounts.drf.ApiKeyAuthentication",
        "clavier.accounts.drf.SessionLogin",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["clavier.accounts.drf.HasTenant"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_PAGINATION_CLASS": "clavier.api.native.paging.CreatedCursor",
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "clavier.api.native.errors.handle",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Clavier",
    "DESCRIPTION": "Tune, judge and serve language models. Authenticate with `Authorization: Bearer <api key>`.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "COMPONENT_SPLIT_REQUEST": True,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "ENUM_NAME_OVERRIDES": {
        "RunState": "clavier.api.native.run_parts.STATES",
        "EndReason": "clavier.api.native.run_parts.END_REASONS",
        "RunKind": "runner.contract.run_spec.RUN_KINDS",
        "DiagnosisKind": "clavier.api.native.nouns.fine_tune_tasks.DIAGNOSES",
        "DatasetKind": "datasets_app.validation.KINDS",
        "DatasetFormat": "datasets_app.formats.FORMATS",
        "DataTaskKind": "datasets_app.models.TASK_KINDS",
        "DataTaskState": "datasets_app.models.TASK_STATES",
        "ModelFormat": "models_app.models.FORMATS",
        "ModelSource": "models_app.models.SOURCES",
        "ModelImportSource": "models_app.services.IMPORT_SOURCES",
        "ImportState": "models_app.models.VERSION_STATES",
        "ImageSource": "clavier.images.models.SOURCES",
        "SearchState": "clavier.api.native.nouns.searches.SEARCH_STATES",
        "ServiceState": "inference_app.queries.SERVICE_STATES",
    },
}

# --- language, time, static files, log --------------------------------------------------------------------------
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("zh-hans", "简体中文")]
LOCALE_PATHS = [BASE_DIR / "templates" / "locale"]
USE_I18N = True
USE_TZ = True
TIME_ZONE = env.str("TIME_ZONE", default="UTC")
STATIC_URL = "/static/"
STATIC_ROOT = CLAVIER_HOME / "static"
STATICFILES_DIRS = [BASE_DIR / "templates" / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    # Compressing every file takes a minute, once: not at the first start of the embedded platform.
    "staticfiles": {
        "BACKEND": (
            "whitenoise.storage.CompressedManifestStaticFilesStorage"
            if CLAVIER_ENVIRONMENT == "production"
            else "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
        )
    },
}
WHITENOISE_USE_FINDERS = DEBUG
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)-7s %(name)s | %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env.str("LOG_LEVEL", default="INFO")},
    "loggers": {
        "django.request": {"level": "ERROR"},
        "axes": {"level": "WARNING"},
        "rq.worker": {"level": "WARNING"},
    },
}
UNFOLD = {"SITE_TITLE": "Clavier", "SITE_HEADER": "Clavier operations", "SITE_URL": "/"}
