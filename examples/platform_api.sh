#!/usr/bin/env bash
# The whole story over the platform API (document 001), with curl alone: image, model, data, code and configuration are
# uploaded; image and model registered; the model tuned with own code and with LoRA; the results registered, evaluated
# and served; a question asked; what remains shown. tar makes the archive of the image.
#
#   ALLOW_CUSTOM_CODE=1 manage.py up                               in one terminal
#   KEY=$(manage.py create_user zhang --tenant demo --password ... --json | sed 's/.*"api_key": "\([^"]*\)".*/\1/')
#   URL=http://127.0.0.1:8000 KEY=clv_... examples/platform_api.sh
#
# MODEL_DIR=folder        a model to upload (config, tokenizer, safetensors); without it a small one is pretrained first
# IMAGE_TAR=image.tar     an image (docker save) with Python and torch in which own code runs, where a node runs
#                         containers; without it a tiny image is made and imported, and own code runs in the platform's
#                         environment
# SKIP_OWN_CODE=1         leaves out what runs the user's own program
# Every answer is printed as it comes.
set -euo pipefail
cd "$(dirname "$0")"
: "${URL:=http://127.0.0.1:8000}" "${KEY:?an API key is needed: see the top of this file}"
TAG=${TAG:-$(date +%s)}
AUTH="Authorization: Bearer $KEY"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

say() { printf '\n== %s\n' "$*" >&2; }

# Prints the answer to stderr and hands it on; stops at the first failure.
checked() {
    local answer
    answer=$(cat)
    printf '%s\n' "${answer:0:600}" >&2
    case $answer in *'"success":true'* | *'"id":'*) printf '%s' "$answer" ;; *) exit 1 ;; esac
}
post() { curl -sS -X POST -H "$AUTH" -H 'Content-Type: application/json' "$URL$1" -d "$2" | checked; }
get() { curl -sS -H "$AUTH" "$URL$1" | checked; }
upload() { curl -sS -X POST -H "$AUTH" -F "file=@$2;filename=$3" -F "currentPath=$1" -F overwrite=true \
    "$URL/api/file/file/uploadFolder" | checked >/dev/null; }
# The first value of a key in an answer.
value() { sed "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/" <<<"$(grep -o "\"$1\": *[^,}]*" | head -n 1)"; }
# Data sets are versioned by the native API; document 001 only names them.
dataset() {
    local id
    id=$(curl -sS -X POST -H "$AUTH" -H 'Content-Type: application/json' "$URL/api/v1/datasets" -d "{\"name\": \"$1\"}" \
        | checked | value id)
    curl -sS -X POST -H "$AUTH" -F "file=@$2" "$URL/api/v1/datasets/$id/versions" | checked | value id
}
# Waits until a task has ended, and tells its model version.
finished() {
    local answer status
    for _ in $(seq 600); do
        answer=$(curl -sS -X POST -H "$AUTH" "$URL/kernel/fineTune/queryLlmFineTuneTaskDetail?taskId=$1")
        status=$(value status <<<"$answer")
        case $status in
            Succeeded) value outputModelVersionId <<<"$answer"; return ;;
            Failed | Stopped) printf '%s\n' "$answer" >&2; return 1 ;;
        esac
        sleep 2
    done
    return 1
}

# Uploads a folder of this machine, with the folders in it.
upload_folder() {
    local file
    while IFS= read -r file; do upload "$2" "$1/$file" "$file"; done < <(cd "$1" && find . -type f | sed 's|^\./||' | sort)
}
# A tiny archive as "docker save" writes it: one layer with one text.
make_image() {
    local machine layer
    case $(uname -m) in x86_64) machine=amd64 ;; aarch64) machine=arm64 ;; *) machine=$(uname -m) ;; esac
    mkdir -p "$WORK/image" "$WORK/layer/etc"
    printf 'made by platform_api.sh\n' >"$WORK/layer/etc/motd"
    tar -C "$WORK/layer" -cf "$WORK/image/layer.tar" etc/motd
    layer=$(sha256sum "$WORK/image/layer.tar" | cut -d ' ' -f 1)
    printf '{"architecture": "%s", "os": "linux", "config": {"Cmd": ["/bin/true"]}, "rootfs": {"type": "layers", "diff_ids": ["sha256:%s"]}}' \
        "$machine" "$layer" >"$WORK/image/config.json"
    printf '[{"Config": "config.json", "RepoTags": ["%s"], "Layers": ["layer.tar"]}]' "$1" >"$WORK/image/manifest.json"
    tar -C "$WORK/image" -cf "$WORK/image.tar" manifest.json config.json layer.tar
}
# Waits until a version of an image is there. Document 001 starts the import; the native API tells how it goes.
imported_image() {
    local answer
    for _ in $(seq 150); do
        answer=$(get "/api/v1/image-versions/$1" 2>/dev/null)
        case $answer in
            *'"state":"ready"'*) printf '%s\n' "$answer" | head -c 600 >&2; return ;;
            *'"state":"failed"'*) printf '%s\n' "$answer" >&2; return 1 ;;
        esac
        sleep 2
    done
    return 1
}
# Waits until a version of a model is there: status 1 importing, 2 imported, 3 failed.
imported_model() {
    local answer
    for _ in $(seq 150); do
        answer=$(get "/model/aiApplicationVersion/getAiApplicationVersionDetail?aiApplicationVersionId=$1" 2>/dev/null)
        case $(value status <<<"$answer") in
            2) printf '%s\n' "${answer:0:600}" >&2; return ;;
            3) printf '%s\n' "$answer" >&2; return 1 ;;
        esac
        sleep 2
    done
    return 1
}
# Makes a model with one version, waits for it, and tells the version: name, then the version's fields. What it declares
# becomes an argument of own code, which must know it.
model() {
    local made version
    made=$(post /model/aiApplication/createAiApplication "{\"application\": {\"name\": \"$1\", \"type\": \"LLM\"},
        \"aiApplicationVersionList\": [{\"version\": \"0.0.1\", $2}],
        \"hyperParameterList\": [{\"paramName\": \"learning_rate\", \"type\": \"float\", \"value\": \"1e-3\", \"valueRange\": [0, 1],
            \"edit\": true}]}")
    version=$(sed 's/.*"aiApplicationVersionList":\[{"id":"\([^"]*\)".*/\1/' <<<"$made")
    imported_model "$version"
    printf '%s' "$version"
}

remaining() {
    say "8 remaining resources and storage / 剩余资源与存储配额"
    post /system/config/getRemainResource '{}' >/dev/null
    post /resource/configRemake/getQuotaRemainResource '{"uid": 2004}' >/dev/null
}
remaining

say "1 upload code, data and configuration / 上传代码、数据与配置"
upload_folder custom_code/code /code
upload_folder custom_code/data /data
upload_folder custom_code/config /config
curl -sS -X POST -H "$AUTH" -F "file=@demo/faq_questions.jsonl;filename=questions.jsonl" -F "currentPath=/shared-$TAG" \
    "$URL/api/file/file/uploadPublicFolder" | checked >/dev/null

say "2 upload, register and import an image / 上传、新增并导入镜像"
IMAGE="demo/$TAG:1.0"
[ -n "${IMAGE_TAR:-}" ] || make_image "$IMAGE"
upload /images "${IMAGE_TAR:-$WORK/image.tar}" "$TAG.tar"
post /docker/image/upload "{\"imageName\": \"demo/$TAG\", \"imageLabel\": [\"demo\"]}" >/dev/null
imported_image "$(post /docker/image/uploadOld "{\"imageName\": \"demo/$TAG\", \"imageTag\": \"1.0\",
    \"fileUrl\": \"images/$TAG.tar\"}" | value imageVersionId)"

say "data sets for the recipes / 预置算法的数据集"
CORPUS=$(dataset "corpus-$TAG" demo/corpus.txt)
FAQ=$(dataset "faq-$TAG" demo/faq.jsonl)

if [ -z "${MODEL_DIR:-}" ]; then
    say "5.1 pretrain a small base model / 预训练"
    BASE_TASK=$(post /kernel/fineTune/createLlmFineTuneTask "{\"name\": \"base-$TAG\", \"isPretrain\": 1,
        \"datasetVersionId\": \"$CORPUS\", \"hyperparameter\": {\"vocab_size\": 1024, \"max_steps\": \"${STEPS:-350}\",
        \"num_hidden_layers\": 2, \"per_device_train_batch_size\": 4, \"learning_rate\": \"0.005\", \"precision\": \"fp32\"},
        \"resource\": [{\"cpuNumber\": 1, \"memory\": 2}]}" | value taskId)
    BASE=$(finished "$BASE_TASK")
    # Its files, as if they came from elsewhere.
    MODEL_DIR=$WORK/model
    mkdir "$MODEL_DIR"
    curl -sS -f -H "$AUTH" "$URL/api/v1/model-versions/$BASE/download" | tar -x -C "$MODEL_DIR" --strip-components 1
fi

say "3 upload and register a model / 上传并创建模型"
upload_folder "$MODEL_DIR" "/model-$TAG"
BASE=$(model "base-$TAG-uploaded" "\"source\": 3, \"saveType\": 2, \"savePath\": \"/model-$TAG\"")

say "4.1 tune it with LoRA / LoRA 微调"
TASK=$(post /kernel/fineTune/createLlmFineTuneTask "{\"name\": \"lora-$TAG\", \"createWay\": \"system\",
    \"fineTuneStrategy\": \"LoRA\", \"modelVersionId\": \"$BASE\", \"datasetVersionId\": \"$FAQ\",
    \"commonHyperParameters\": [{\"name\": \"learning_rate\", \"value\": \"5e-3\"},
        {\"name\": \"max_steps\", \"value\": \"${STEPS:-350}\"}, {\"name\": \"per_device_train_batch_size\", \"value\": \"16\"},
        {\"name\": \"max_seq_length\", \"value\": \"256\"}, {\"name\": \"precision\", \"value\": \"fp32\"},
        {\"name\": \"save_strategy\", \"value\": \"steps\"}, {\"name\": \"save_steps\", \"value\": \"200\"}],
    \"fineTuneHyperParameters\": [{\"name\": \"lora_r\", \"value\": \"32\"}, {\"name\": \"lora_alpha\", \"value\": \"64\"}],
    \"resource\": [{\"cpuNumber\": 1, \"memory\": 2}]}" | value taskId)
finished "$TASK" >/dev/null
post /kernel/fineTune/listLlmFineTuneTask '{"pageNum": 1, "pageSize": 10, "isPretrain": 0, "status": ""}' >/dev/null
post /kernel/fineTuneManage/listFineTuneTaskManage '{"pageNum": 1, "pageSize": 10}' >/dev/null

say "3 register the result as a model / 创建模型"
VERSION=$(model "model-$TAG" "\"source\": 1, \"llmFineTuneTaskId\": \"$TASK\"")
MODEL_ID=$(get "/model/aiApplicationVersion/getAiApplicationVersionDetail?aiApplicationVersionId=$VERSION" | value applicationId)
post /model/aiApplication/getAiApplicationList '{"pageNum": 1, "pageSize": 10, "queryInfo": {}}' >/dev/null
get "/model/aiApplication/getAiApplicationDetail?aiApplicationId=$MODEL_ID" >/dev/null
get "/model/aiApplicationVersion/getAiApplicationVersionList?aiApplicationId=$MODEL_ID" >/dev/null

if [ -z "${SKIP_OWN_CODE:-}" ]; then
    say "4.1 the user's own training program / 自定义代码微调"
    own() { curl -sS -X POST -H "$AUTH" -H 'Content-Type: application/json' "$URL/kernel/fineTune/createLlmFineTuneTask" -d "{
        \"name\": \"own-$TAG\", \"createWay\": \"custom\", \"image\": \"$1\",
        \"command\": \"python train.py --model_dir \${model_dir} --input_dir \${input_dir} --output_dir \${output_dir} \
--checkpoint_dir \${checkpoint_dir}\", \"workingDir\": \"/code\", \"modelVersionId\": \"$BASE\",
        \"inputType\": \"local\", \"inputDir\": \"/data\", \"outputDir\": \"/result-$TAG\", \"checkPointDir\": \"/checkpoints-$TAG\",
        \"profilePath\": \"/config/FineTune/config.json\", \"variable\": [{\"OMP_NUM_THREADS\": \"1\"}],
        \"resource\": [{\"cpuNumber\": 1, \"memory\": 2}]}"; }
    RUN_IN=platform
    if [ -n "${IMAGE_TAR:-}" ]; then RUN_IN=$IMAGE; else
        say "the image made here holds no Python: own code runs in the platform's environment / 自定义代码使用平台环境"
    fi
    ANSWER=$(own "$RUN_IN")
    case $ANSWER in *'"error":"needs_container"'*)
        say "no node runs containers: own code runs in the platform's environment / 没有容器节点，使用平台环境"
        RUN_IN=platform
        ANSWER=$(own "$RUN_IN")
    esac
    OWN=$(checked <<<"$ANSWER" | value taskId)
    finished "$OWN" >/dev/null

    say "3 register what it made / 登记自定义代码的结果"
    OWN_VERSION=$(model "own-model-$TAG" "\"source\": 1, \"llmFineTuneTaskId\": \"$OWN\"")

    say "6 the user's own evaluation / 自定义评估"
    EVALUATION=$(post /model/evaluation/task/create "{\"name\": \"judge-$TAG\", \"image\": \"$RUN_IN\",
        \"command\": \"python evaluate.py \${model_dir} \${input_dir} \${output_dir}\", \"workDir\": \"/code\",
        \"modelType\": \"aiApp\", \"aiAppVersionId\": \"$OWN_VERSION\", \"inputType\": \"local\", \"inputDir\": \"/data\", \"outputDir\": \"/scores-$TAG\",
        \"resource\": {\"cpuNumber\": 1, \"memory\": 2}, \"env\": []}" | value id)
    for _ in $(seq 60); do
        # The envelope has a number of that name; the task's is a word.
        STATUS=$(get "/api/model/evaluation/task/detail/$EVALUATION" 2>/dev/null | sed 's/.*"status":"\([A-Za-z]*\)".*/\1/')
        case $STATUS in Succeeded | Failed | Stopped) break ;; esac
        sleep 2
    done
    get "/api/model/evaluation/task/detail/$EVALUATION" >/dev/null
    post /model/evaluation/task/page '{"userId": "", "status": "", "taskName": ""}' >/dev/null
    [ "$STATUS" = Succeeded ]
fi

say "7 deploy and ask / 部署并提问"
SERVER=$(post /model/modelServer/createModelInferenceServer "{\"modelServer\": {\"name\": \"faq-$TAG\"},
    \"modelServerVersions\": [{\"aiApplicationVersionId\": \"$VERSION\", \"rate\": 100, \"cpu\": 1, \"memory\": 2,
    \"imagePorts\": \"5050\", \"envs\": \"[]\", \"volumes\": \"[]\", \"hyperParameterList\": \"null\", \"reqMethod\": \"rest\"}]}")
SERVER_ID=$(value modelServerId <<<"$SERVER")
SERVER_VERSION=$(sed 's/.*"modelServerVersions":\[{"id":"\([^"]*\)".*/\1/' <<<"$SERVER")
for _ in $(seq 90); do
    STATUS=$(post /model/modelServer/findModelServerById "{\"id\": \"$SERVER_ID\"}" 2>/dev/null | value status)
    [ "$STATUS" = Running ] && break
    sleep 2
done
post /model/modelServer/createModelServer "{\"modelServer\": {\"name\": \"faq-draft-$TAG\"},
    \"modelServerVersions\": [{\"aiApplicationVersionId\": \"$VERSION\"}]}" >/dev/null
post /model/modelServer/findModelServerPageList '{"pageNum": 1, "pageSize": 10, "queryCriteria": {"name": ""}}' >/dev/null
post /model/modelServerVersion/findModelServerVersionById "{\"id\": \"$SERVER_VERSION\"}" >/dev/null
curl -sS -X POST -H "$AUTH" -H 'Content-Type: application/json' "$URL/openai/v1/chat/completions" -d "{
    \"model\": \"faq-$TAG\", \"temperature\": 0, \"max_tokens\": 40,
    \"messages\": [{\"role\": \"user\", \"content\": \"What are your opening hours on weekdays?\"}]}" | checked >/dev/null
remaining
say "done / 完成"
