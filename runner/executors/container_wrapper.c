/* The wrapper inside a container: starts the program, writes its log, obeys time limit and stop, reports how it ended.
 *
 * container_wrapper LOG MAX_LOG_MIB TIME_LIMIT_MS STOP_GRACE_MS MEMORY_MIB ORDERS REPORT PROGRAM [ARGUMENT...]
 *
 * container_wrapper --relay SOCKET READY PORT PROGRAM [ARGUMENT...]
 *
 * becomes PROGRAM, a server of a user's own, with a relay beside it: a container has no network, so once the server
 * answers on PORT of the loopback the relay passes connections to SOCKET on to it, and then writes READY. With PORT 0
 * the server makes SOCKET itself, and READY follows once it answers.
 *
 * It is linked statically and needs nothing of the image. It runs as the program's own user below the engine's init.
 * ORDERS is a folder that only the platform writes: "stop" holds the seconds of grace. In the folder REPORT it makes
 * "started" before the program exists and "report.json" after no process of it is left, each once and durably.
 * A program could kill it and forge the report, so the platform believes it only where its own facts agree.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1 << 20, PIECES_PER_TURN = 8, TICK_MS = 250, ROOM = 8192, REPORT_TRIES = 30 };
enum { NOT_EXECUTABLE = 126, NOT_FOUND = 127, STARTED_BEFORE = 125, SIGNAL_BASE = 128 };

static int log_file = -1, log_truncated, log_capped, at_line_start = 1;
static long long log_room, max_log_mib, memory_mib, max_memory_mib;
static const char *orders, *report;
static char piece[PIECE];

static long long now_ms(clockid_t which) {
    struct timespec now;
    clock_gettime(which, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void append(const char *data, size_t size) {
    while (size > 0) {
        ssize_t written = write(log_file, data, size);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) { /* disk full, quota: the program goes on, the result tells */
            log_truncated = 1;
            return;
        }
        data += written;
        size -= (size_t)written;
    }
}

/* A line of the platform's own. It goes beyond the cap, never beyond the disk. */
static void say(const char *format, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (size >= (int)sizeof line) size = (int)sizeof line - 1;
    if (!at_line_start) append("\n", 1);
    append("[clavier] ", 10);
    append(line, (size_t)size);
    append("\n", 1);
    at_line_start = 1;
}

static void log_piece(size_t size) {
    size_t fitting = (long long)size > log_room ? (size_t)log_room : size;
    if (fitting > 0) {
        log_room -= (long long)fitting;
        append(piece, fitting);
        at_line_start = piece[fitting - 1] == '\n';
    }
    if (fitting < size) {
        log_truncated = 1;
        if (!log_capped) {
            log_capped = 1;
            say("the log is full (%lld MiB); what follows is dropped", max_log_mib);
        }
    }
}

/* Move what the pipe holds into the log; 0 at its end. Some MiB a turn, so that a stop is seen in time. */
static int pump(int source, int until_empty) {
    for (int turns = 0; until_empty || turns < PIECES_PER_TURN; turns++) {
        ssize_t size = read(source, piece, sizeof piece);
        if (size < 0 && errno == EINTR) continue;
        if (size < 0) return 1;
        if (size == 0) return 0;
        log_piece((size_t)size);
    }
    return 1;
}

static char *in_folder(char *path, size_t size, const char *folder, const char *name) {
    snprintf(path, size, "%s/%s", folder, name);
    return path;
}

/* Seconds of grace of a stop request, or -1. */
static double stop_request(void) {
    char path[4096], text[64] = "";
    int file = open(in_folder(path, sizeof path, orders, "stop"), O_RDONLY | O_CLOEXEC);
    if (file < 0) return -1;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    return size > 0 ? atof(text) : -1;
}

/* The sum of the named numbers of a file of "name number" lines, or -1. */
static long long numbers_of(const char *path, const char *first, const char *second) {
    char name[64];
    long long value, sum = -1;
    FILE *file = fopen(path, "re");
    if (file == NULL) return -1;
    while (fscanf(file, "%63s %lld", name, &value) == 2)
        if (strcmp(name, first) == 0 || strcmp(name, second) == 0) sum = (sum < 0 ? 0 : sum) + value;
    fclose(file);
    return sum;
}

/* Processes which the kernel has killed for memory in this container, by version 2 or 1 of its control groups. */
static long long memory_kills(void) {
    long long kills = numbers_of("/sys/fs/cgroup/memory.events", "oom_kill", "");
    if (kills < 0) kills = numbers_of("/sys/fs/cgroup/memory/memory.oom_control", "oom_kill", "");
    return kills < 0 ? 0 : kills;
}

/* Memory that can not be dropped (anonymous and shared, not cached files). */
static void measure_memory(void) {
    long long bytes = numbers_of("/sys/fs/cgroup/memory.stat", "anon", "shmem");
    if (bytes < 0) bytes = numbers_of("/sys/fs/cgroup/memory/memory.stat", "total_rss", "total_shmem");
    if (bytes >> 20 > max_memory_mib) max_memory_mib = bytes >> 20;
}

/* Write a file of the report folder durably, once or over another: 0, or -1 with errno. */
static int write_durably(const char *name, const char *text, int is_once) {
    char path[4096], temporary[4096];
    in_folder(path, sizeof path, report, name);
    in_folder(temporary, sizeof temporary, report, ".new");
    unlink(temporary);
    int file = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file < 0) return -1;
    size_t size = strlen(text);
    int failed = write(file, text, size) != (ssize_t)size || fsync(file) != 0;
    close(file);
    if (failed || (is_once ? link(temporary, path) : rename(temporary, path)) != 0) {
        int reason = failed ? ENOSPC : errno;
        unlink(temporary);
        errno = reason;
        return -1;
    }
    unlink(temporary);
    int folder = open(report, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) {
        fsync(folder);
        close(folder);
    }
    return 0;
}

static void reserve_room(int is_needed) {
    char path[4096];
    in_folder(path, sizeof path, report, ".room");
    if (!is_needed) {
        unlink(path);
        return;
    }
    int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) return;
    if (posix_fallocate(file, 0, ROOM) != 0) ftruncate(file, 0);
    close(file);
}

/* A full disk is waited for: the report is worth more than an early end. */
static void write_report(const char *ending, int exit_code, int not_run, long long started, long long kills) {
    char text[1024];
    snprintf(text, sizeof text,
             "{\"ending\": \"%s\", \"exit_code\": %d, \"not_run\": %s, \"started_at\": %.3f, \"ended_at\": %.3f, "
             "\"max_memory_mib\": %lld, \"memory_kills\": %lld, \"log_truncated\": %s}\n",
             ending, exit_code, not_run ? "true" : "false", (double)started / 1000,
             (double)now_ms(CLOCK_REALTIME) / 1000, max_memory_mib, kills, log_truncated ? "true" : "false");
    for (int tries = 0; tries < REPORT_TRIES; tries++) {
        reserve_room(0);
        if (write_durably("report.json", text, 0) == 0) return;
        sleep(1);
    }
}

static void become_program(char **argv, int output, int refusals) {
    sigset_t none;
    setsid();
    signal(SIGPIPE, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    dup2(open("/dev/null", O_RDONLY), 0);
    dup2(output, 1);
    dup2(output, 2);
    umask(022);
    execvp(argv[0], argv);
    int reason = errno;
    ssize_t ignored = write(refusals, &reason, sizeof reason);
    (void)ignored;
    _exit(NOT_FOUND);
}

/* Fork and exec; the errno of an exec that failed, else 0. The parent reads the end of file of a close-on-exec pipe. */
static int start_program(char **argv, int output, pid_t *program) {
    int refusals[2], reason = 0;
    if (pipe2(refusals, O_CLOEXEC) != 0) return errno;
    *program = fork();
    if (*program == 0) become_program(argv, output, refusals[1]);
    int failed = *program < 0 ? errno : 0;
    close(refusals[1]);
    close(output);
    if (!failed && read(refusals[0], &reason, sizeof reason) < (ssize_t)sizeof reason) reason = 0;
    close(refusals[0]);
    return failed ? failed : reason;
}

/* Reap what has ended; 1 once the program is among it. */
static int reap(pid_t program, int *status) {
    int ended = 0, each;
    pid_t pid;
    while ((pid = waitpid(-1, &each, WNOHANG)) > 0)
        if (pid == program) {
            *status = each;
            ended = 1;
        }
    return ended;
}

/* Only below the init of a process namespace of its own, and never as root: elsewhere kill(-1) would end the host. */
static int is_in_container(void) {
    char name[64] = "";
    if (readlink("/proc/self/ns/pid", name, sizeof name - 1) <= 0) return 0;
    return geteuid() != 0 && getppid() == 1 && strcmp(name, "pid:[4026531836]") != 0;
}

/* Kill and reap every process of this container but the engine's init and this one; orphans became our children. */
static void end_all(void) {
    for (;;) {
        kill(-1, SIGKILL);
        while (waitpid(-1, NULL, WNOHANG) > 0) {}
        if (waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD) return;
        usleep(5000);
    }
}

static int connect_to(int port, const struct sockaddr_un *path) {
    struct sockaddr_in loopback = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int server = socket(port > 0 ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (server < 0) return -1;
    int failed = port > 0 ? connect(server, (const struct sockaddr *)&loopback, sizeof loopback)
                          : connect(server, (const struct sockaddr *)path, sizeof *path);
    if (failed == 0) return server;
    close(server);
    return -1;
}

/* Bytes from one end to the other; 0 once there are no more in this direction. */
static int pass_on(int from, int to) {
    ssize_t size = read(from, piece, sizeof piece);
    if (size < 0 && errno == EINTR) return 1;
    if (size <= 0) {
        shutdown(to, SHUT_WR);
        return 0;
    }
    for (ssize_t sent = 0; sent < size;) {
        ssize_t count = write(to, piece + sent, (size_t)(size - sent));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return 0;
        sent += count;
    }
    return 1;
}

static void relay_connection(int client, int port) {
    int server = connect_to(port, NULL);
    if (server < 0) return;
    for (int asks = 1, answers = 1; answers;) {
        struct pollfd fds[2] = {{asks ? client : -1, POLLIN, 0}, {server, POLLIN, 0}};
        if (poll(fds, 2, -1) < 0 && errno != EINTR) return;
        if (fds[1].revents) answers = pass_on(server, client);
        if (asks && fds[0].revents) asks = pass_on(client, server);
    }
}

/* Wait for the server, listen for it where it does not itself, say so, and relay until the container ends. */
static void relay(const char *socket_path, const char *ready, int port) {
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    if (strlen(socket_path) >= sizeof path.sun_path) return;
    strcpy(path.sun_path, socket_path);
    int server, listener = -1;
    while ((server = connect_to(port, &path)) < 0) usleep(TICK_MS * 1000);
    close(server);
    if (port > 0) {
        unlink(socket_path);
        listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (bind(listener, (struct sockaddr *)&path, sizeof path) != 0 || listen(listener, 128) != 0) return;
    }
    int file = open(ready, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file < 0) return;
    dprintf(file, "{\"engine\": \"own\"}\n");
    close(file);
    while (port > 0) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client >= 0 && fork() == 0) {
            close(listener);
            relay_connection(client, port);
            _exit(0);
        }
        if (client >= 0) close(client);
    }
}

/* The relay belongs to the wrapper, not to the program, which must not meet a child that it never made. */
static int run_with_relay(char **argv) {
    pid_t between = fork();
    if (between == 0) {
        if (fork() == 0) {
            setsid();
            signal(SIGCHLD, SIG_IGN);
            signal(SIGPIPE, SIG_IGN);
            close(1);
            close(2);
            relay(argv[2], argv[3], atoi(argv[4]));
        }
        _exit(0);
    }
    if (between > 0) waitpid(between, NULL, 0);
    execvp(argv[5], argv + 5);
    int code = errno == ENOENT || errno == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE;
    dprintf(2, "[clavier] command not run: %s: %s\n", argv[5], strerror(errno));
    return code;
}

int main(int argc, char **argv) {
    if (argc > 5 && strcmp(argv[1], "--relay") == 0) return run_with_relay(argv);
    if (argc < 9) {
        dprintf(2, "usage: %s LOG MAX_LOG_MIB TIME_LIMIT_MS STOP_GRACE_MS MEMORY_MIB ORDERS REPORT PROGRAM...\n", argv[0]);
        return NOT_FOUND;
    }
    if (!is_in_container()) {
        dprintf(2, "%s runs only below the init of a container, and never as root\n", argv[0]);
        return NOT_EXECUTABLE;
    }
    max_log_mib = atoll(argv[2]);
    long long time_limit = atoll(argv[3]), limit_grace = atoll(argv[4]);
    memory_mib = atoll(argv[5]);
    orders = argv[6];
    report = argv[7];
    char **command = argv + 8;

    sigset_t watched;
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigaddset(&watched, SIGTERM);
    sigaddset(&watched, SIGINT);
    sigaddset(&watched, SIGHUP);
    sigprocmask(SIG_BLOCK, &watched, NULL);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1);

    long long started = now_ms(CLOCK_REALTIME), began = now_ms(CLOCK_MONOTONIC);
    char text[64];
    snprintf(text, sizeof text, "%.3f\n", (double)started / 1000);
    if (write_durably("started", text, 1) != 0) {
        dprintf(2, "this attempt was started before, or its report folder takes no file: %s\n", strerror(errno));
        return STARTED_BEFORE;
    }
    reserve_room(1);
    struct stat facts;
    log_file = open(argv[1], O_WRONLY | O_APPEND | O_CLOEXEC);
    if (log_file < 0 || fstat(log_file, &facts) != 0) log_truncated = 1;
    else log_room = (max_log_mib << 20) - facts.st_size;
    if (log_room < 0) log_room = 0;

    double grace = stop_request();
    if (grace >= 0) {
        say("stopped before it started, %g s grace", grace);
        write_report("stopped", 0, 1, started, 0);
        return 0;
    }
    int output[2], alarms = signalfd(-1, &watched, SFD_NONBLOCK | SFD_CLOEXEC), status = 0;
    pid_t program = -1;
    if (pipe2(output, O_CLOEXEC) != 0) return STARTED_BEFORE;
    fcntl(output[0], F_SETPIPE_SZ, PIECE);
    fcntl(output[0], F_SETFL, O_NONBLOCK);
    long long kills_before = memory_kills();
    int reason = start_program(command, output[1], &program);
    if (reason != 0) {
        int code = reason == ENOENT || reason == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE;
        say("command not run: %s: %s", command[0], strerror(reason));
        end_all();
        write_report("", code, 1, started, 0);
        return code;
    }

    const char *ending = "";
    long long kill_at = -1, tick_at = began;
    int is_open = 1;
    for (int ended = 0; !ended;) {
        struct pollfd fds[2] = {{alarms, POLLIN, 0}, {output[0], POLLIN, 0}};
        poll(fds, is_open ? 2 : 1, TICK_MS);
        if (is_open && fds[1].revents) is_open = pump(output[0], 0);
        struct signalfd_siginfo alarm;
        while (read(alarms, &alarm, sizeof alarm) == (ssize_t)sizeof alarm) {
            tick_at = 0; /* a stop is announced by a signal: look at once */
            if (alarm.ssi_signo != SIGCHLD && *ending == '\0' && stop_request() < 0) kill(-1, (int)alarm.ssi_signo);
        }
        ended = reap(program, &status);
        long long now = now_ms(CLOCK_MONOTONIC);
        if (ended || now < tick_at) continue;
        tick_at = now + TICK_MS;
        measure_memory();
        const char *due = NULL;
        double due_grace = 0;
        if ((grace = stop_request()) >= 0) {
            due = "stopped";
            due_grace = grace;
            if (*ending == '\0') say("stop requested; ending the program, %g s grace", grace);
        } else if (time_limit > 0 && now - began >= time_limit) {
            due = "time_limit";
            due_grace = (double)limit_grace / 1000;
            if (*ending == '\0')
                say("time limit of %g s reached; ending the program, %g s grace", (double)time_limit / 1000, due_grace);
        }
        if (due != NULL) {
            long long until = now + (long long)(due_grace * 1000);
            if (*ending == '\0') {
                ending = due;
                if (due_grace > 0) kill(-1, SIGTERM);
            }
            if (kill_at < 0 || until < kill_at) kill_at = until;
        }
        if (kill_at >= 0 && now >= kill_at) kill(-1, SIGKILL);
    }
    end_all();
    pump(output[0], 1);
    int code = WIFSIGNALED(status) ? SIGNAL_BASE + WTERMSIG(status) : WEXITSTATUS(status);
    long long kills = memory_kills() - kills_before;
    if (kills > 0) {
        max_memory_mib = memory_mib;
        say("memory: the kernel killed %lld process%s; they wanted more than the %lld MiB the run asked for", kills,
            kills == 1 ? "" : "es", memory_mib);
    } else if (*ending == '\0' && WIFSIGNALED(status) && (WTERMSIG(status) == SIGKILL || WTERMSIG(status) == SIGTERM))
        say("ended by signal %d, which the platform did not send", WTERMSIG(status));
    fsync(log_file);
    write_report(ending, code, 0, started, kills);
    return code;
}
