#!/usr/bin/env bash
# The whole story over the platform API (document 001), with curl alone: files, image, data, a base model, LoRA, own
# code, registration, evaluation, a service, a question.
#
#   manage.py up                                                   in one terminal
#   KEY=$(manage.py create_user zhang --tenant demo --password ... --json | sed 's/.*"api_key": "\([^"]*\)".*/\1/')
#   URL=http://127.0.0.1:8000 KEY=clv_... examples/platform_api.sh
#
# SKIP_OWN_CODE=1 leaves out what runs the user's own program. Every answer is printed as it comes.
set -euo pipefail
cd "$(dirname "$0")"
: "${URL:=http://127.0.0.1:8000}" "${KEY:?an API key is needed: see the top of this file}"
TAG=${TAG:-$(date +%s)}
AUTH="Authorization: Bearer $KEY"

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

say "8 remaining resources and storage / 剩余资源与存储配额"
post /system/config/getRemainResource '{}' >/dev/null
post /resource/configRemake/getQuotaRemainResource '{"uid": 2004}' >/dev/null

say "1 upload code, data and configuration / 上传代码、数据与配置"
upload /code custom_code/code/train.py train.py
upload /code custom_code/code/evaluate.py evaluate.py
for split in train validate test; do upload / "custom_code/data/$split/$split.jsonl" "data/$split/$split.jsonl"; done
upload /config/LoRA custom_code/config/LoRA/config.json config.json

say "2 register an image / 新增镜像"
post /docker/image/upload "{\"imageName\": \"demo/$TAG\", \"imageLabel\": [\"demo\"]}" >/dev/null

say "data sets for the recipes / 预置算法的数据集"
CORPUS=$(dataset "corpus-$TAG" demo/corpus.txt)
FAQ=$(dataset "faq-$TAG" demo/faq.jsonl)

say "5.1 pretrain a small base model / 预训练"
BASE_TASK=$(post /kernel/fineTune/createLlmFineTuneTask "{\"name\": \"base-$TAG\", \"isPretrain\": 1,
    \"datasetVersionId\": \"$CORPUS\", \"hyperparameter\": {\"vocab_size\": 1024, \"max_steps\": \"${STEPS:-350}\",
    \"num_hidden_layers\": 2, \"per_device_train_batch_size\": 4, \"learning_rate\": \"0.005\", \"precision\": \"fp32\"},
    \"resource\": [{\"cpuNumber\": 1, \"memory\": 2}]}" | value taskId)
BASE=$(finished "$BASE_TASK")

say "4.1 tune it with LoRA / LoRA 微调"
TASK=$(post /kernel/fineTune/createLlmFineTuneTask "{\"name\": \"lora-$TAG\", \"createWay\": \"system\",
    \"fineTuneStrategy\": \"LoRA\", \"modelVersionId\": \"$BASE\", \"datasetVersionId\": \"$FAQ\",
    \"commonHyperParameters\": [{\"name\": \"learning_rate\", \"value\": \"5e-3\"},
        {\"name\": \"max_steps\", \"value\": \"${STEPS:-350}\"}, {\"name\": \"per_device_train_batch_size\", \"value\": \"16\"},
        {\"name\": \"max_seq_length\", \"value\": \"256\"}, {\"name\": \"precision\", \"value\": \"fp32\"},
        {\"name\": \"save_strategy\", \"value\": \"steps\"}, {\"name\": \"save_steps\", \"value\": \"200\"}],
    \"fineTuneHyperParameters\": [{\"name\": \"lora_r\", \"value\": \"32\"}, {\"name\": \"lora_alpha\", \"value\": \"64\"}],
    \"resource\": [{\"cpuNumber\": 1, \"memory\": 2}]}" | value taskId)
TUNED=$(finished "$TASK")
post /kernel/fineTune/listLlmFineTuneTask '{"pageNum": 1, "pageSize": 10, "isPretrain": 0, "status": ""}' >/dev/null
post /kernel/fineTuneManage/listFineTuneTaskManage '{"pageNum": 1, "pageSize": 10}' >/dev/null

say "3 register the result as a model / 创建模型"
MODEL=$(post /model/aiApplication/createAiApplication "{\"application\": {\"name\": \"model-$TAG\", \"type\": \"LLM\"},
    \"aiApplicationVersionList\": [{\"version\": \"0.0.1\", \"source\": 1, \"llmFineTuneTaskId\": \"$TASK\"}],
    \"hyperParameterList\": [{\"paramName\": \"top_p\", \"type\": \"float\", \"value\": \"0.9\", \"valueRange\": [0, 1],
        \"edit\": true}]}")
MODEL_ID=$(value applicationId <<<"$MODEL")
post /model/aiApplication/getAiApplicationList '{"pageNum": 1, "pageSize": 10, "queryInfo": {}}' >/dev/null
get "/model/aiApplication/getAiApplicationDetail?aiApplicationId=$MODEL_ID" >/dev/null
VERSION=$(get "/model/aiApplicationVersion/getAiApplicationVersionList?aiApplicationId=$MODEL_ID" | value id)
get "/model/aiApplicationVersion/getAiApplicationVersionDetail?aiApplicationVersionId=$VERSION" >/dev/null

if [ -z "${SKIP_OWN_CODE:-}" ]; then
    say "4.1 the user's own training program / 自定义代码微调"
    OWN=$(post /kernel/fineTune/createLlmFineTuneTask "{\"name\": \"own-$TAG\", \"createWay\": \"custom\",
        \"image\": \"platform\", \"command\": \"python train.py --model_dir \${model_dir} --input_dir \${input_dir} \
--output_dir \${output_dir} --checkpoint_dir \${checkpoint_dir}\", \"workingDir\": \"/code\", \"modelVersionId\": \"$BASE\",
        \"inputType\": \"local\", \"inputDir\": \"/data\", \"outputDir\": \"/result-$TAG\", \"checkPointDir\": \"/checkpoints-$TAG\",
        \"profilePath\": \"/config/LoRA/config.json\", \"variable\": [{\"OMP_NUM_THREADS\": \"1\"}],
        \"resource\": [{\"cpuNumber\": 1, \"memory\": 2}]}" | value taskId)
    finished "$OWN" >/dev/null

    say "6 the user's own evaluation / 自定义评估"
    EVALUATION=$(post /model/evaluation/task/create "{\"name\": \"judge-$TAG\", \"image\": \"platform\",
        \"command\": \"python evaluate.py \${model_dir} \${input_dir} \${output_dir}\", \"workDir\": \"/code\",
        \"modelType\": \"aiApp\", \"aiAppVersionId\": \"$BASE\", \"inputType\": \"local\", \"inputDir\": \"/data\", \"outputDir\": \"/scores-$TAG\",
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
    \"modelServerVersions\": [{\"aiApplicationVersionId\": \"$TUNED\", \"rate\": 100, \"cpu\": 1, \"memory\": 2,
    \"imagePorts\": \"5050\", \"envs\": \"[]\", \"volumes\": \"[]\", \"hyperParameterList\": \"null\", \"reqMethod\": \"rest\"}]}")
SERVER_ID=$(value modelServerId <<<"$SERVER")
SERVER_VERSION=$(sed 's/.*"modelServerVersions":\[{"id":"\([^"]*\)".*/\1/' <<<"$SERVER")
for _ in $(seq 90); do
    STATUS=$(post /model/modelServer/findModelServerById "{\"id\": \"$SERVER_ID\"}" 2>/dev/null | value status)
    [ "$STATUS" = Running ] && break
    sleep 2
done
post /model/modelServer/findModelServerPageList '{"pageNum": 1, "pageSize": 10, "queryCriteria": {"name": ""}}' >/dev/null
post /model/modelServerVersion/findModelServerVersionById "{\"id\": \"$SERVER_VERSION\"}" >/dev/null
curl -sS -X POST -H "$AUTH" -H 'Content-Type: application/json' "$URL/openai/v1/chat/completions" -d "{
    \"model\": \"faq-$TAG\", \"temperature\": 0, \"max_tokens\": 40,
    \"messages\": [{\"role\": \"user\", \"content\": \"What are your opening hours on weekdays?\"}]}" | checked
say "done / 完成"
