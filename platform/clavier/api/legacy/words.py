"""Two languages at the door: Chinese as the document prints it, English for ``Accept-Language: en``."""

from __future__ import annotations

from django.utils.functional import lazy
from django.utils.translation import get_language
from django.utils.translation.trans_real import parse_accept_lang_header

from clavier.api.legacy.sentences import in_chinese

#: What a machine word of a service means: in front of a sentence that has no Chinese one.
CHINESE = {
    "already_ended": "任务已经结束",
    "already_exists": "已存在同名对象",
    "already_started": "已经启动",
    "ambiguous": "名称对应多个对象",
    "bad_cursor": "游标无效",
    "bad_encoding": "文本编码无效",
    "bad_header": "请求头无效",
    "bad_image": "镜像文件无效",
    "bad_layout": "目录结构不符合要求",
    "bad_name": "名称不合法",
    "bad_output": "输出内容无效",
    "bad_password": "密码不符合要求",
    "bad_path": "路径不合法",
    "bad_request": "请求不完整",
    "bad_row": "数据行无效",
    "bad_value": "参数值不合法",
    "body_too_large": "请求体过大",
    "busy": "系统繁忙，请稍后再试",
    "client_disconnected": "连接中断，请求体不完整",
    "command_not_executable": "命令没有执行权限",
    "command_not_found": "命令不存在",
    "conflict": "对象状态冲突",
    "conflicting_fields": "参数相互冲突",
    "content_mismatch": "文件内容与类型不符",
    "corrupt_archive": "压缩包已损坏",
    "corrupt_file": "文件已损坏",
    "csrf_failed": "CSRF 校验失败",
    "download_only": "该版本仅供下载",
    "duplicate_entry": "压缩包中有重复的文件",
    "duplicate_key": "键重复",
    "empty_archive": "压缩包中没有文件",
    "empty_dataset": "数据集为空",
    "encrypted_archive": "压缩包已加密",
    "excluded": "参数只能选一种",
    "exit_code": "程序失败",
    "file_too_large": "文件过大",
    "forbidden": "没有权限",
    "group_inactive": "资源组不接收新任务",
    "grpc_not_served": "不转发 gRPC",
    "host_not_allowed": "不允许访问该主机",
    "idempotency_mismatch": "幂等键已用于另一个请求",
    "image_unavailable": "镜像不可用",
    "in_use": "对象正在使用中",
    "infrastructure": "平台故障",
    "insufficient_storage": "存储空间不足",
    "into_itself": "不能移动到自身之中",
    "invalid": "请求无效",
    "invalid_credentials": "用户名或密码错误",
    "invalid_spec": "任务参数无效",
    "invalid_token": "令牌无效",
    "inventory_failed": "无法读取 GPU 清单",
    "last_owner": "租户至少需要一个所有者",
    "length_required": "缺少 Content-Length",
    "link_not_allowed": "不允许链接",
    "malformed_body": "请求体无法解析",
    "malformed_json": "JSON 格式错误",
    "malformed_yaml": "YAML 格式错误",
    "method_not_allowed": "不支持的请求方法",
    "missing_column": "数据缺少需要的列",
    "missing_file": "缺少文件",
    "model_not_found": "模型不存在",
    "needs_container": "需要运行容器的节点",
    "no_base": "缺少基础模型",
    "no_config": "没有配置文件",
    "no_files": "该版本没有文件",
    "no_output": "没有输出",
    "no_such_endpoint": "地址不存在",
    "not_a_choice": "取值不在允许范围内",
    "not_a_folder": "不是目录",
    "not_a_regular_file": "不是普通文件",
    "not_an_archive": "不是压缩包",
    "not_authenticated": "未登录",
    "not_found": "对象不存在",
    "not_honoured": "该参数在此不起作用",
    "not_ready": "对象尚未就绪",
    "not_retriable": "该任务不能重试",
    "not_settable": "该参数不可设置",
    "note": "说明",
    "nothing_changed": "没有变化",
    "nothing_to_merge": "没有可合并的适配器",
    "operators_only": "仅限平台管理员",
    "out_of_memory": "内存或显存不足",
    "out_of_range": "数值超出范围",
    "over_limit": "超出资源组上限",
    "path_outside_root": "路径越界",
    "quota_exceeded": "配额不足",
    "rates_not_100": "流量之和不是 100",
    "required": "缺少必填参数",
    "reserved_name": "名称由平台保留",
    "row_too_large": "数据行过大",
    "scope_missing": "API 密钥权限不足",
    "secret_lost": "保存的密钥已失效",
    "session_expired": "会话已过期",
    "special_file_not_allowed": "不允许特殊文件",
    "stopped": "已停止",
    "stopping": "正在停止",
    "time_limit": "超过运行时限",
    "too_deep": "嵌套过深",
    "too_large": "内容过大",
    "too_long": "内容过长",
    "too_many": "数量过多",
    "too_many_entries": "压缩包中的文件过多",
    "too_many_files": "文件过多",
    "too_many_parts": "上传的文件过多",
    "too_many_requests": "请求过于频繁",
    "unknown_field": "未知的参数",
    "unknown_placeholder": "未知的占位符",
    "unpacked_too_large": "解压后过大",
    "unprocessable": "当前环境无法完成该请求",
    "unschedulable": "没有能够运行该任务的节点",
    "unsupported_media_type": "不支持的 Content-Type",
    "will_not_fit": "显存或内存不足",
    "wrong_task": "模型用途不符",
    "wrong_type": "参数类型错误",
}


def say(chinese: str, english: str) -> str:
    """The sentence in the language of the request."""
    return english if (get_language() or "").startswith("en") else chinese


#: The same, decided when the text is used; for texts of a class body.
said = lazy(say, str)


def language_of(accept: str) -> str:
    """``en`` or ``zh-hans`` for an Accept-Language header; Chinese when it names neither."""
    for name, _ in parse_accept_lang_header(accept):
        if name.split("-")[0] in ("en", "zh"):
            return "en" if name.startswith("en") else "zh-hans"
    return "zh-hans"


def translated(code: str, message: str) -> str:
    """A service's sentence in the language of the request."""
    return say(in_chinese(message) or f"{CHINESE.get(code, code)}：{message}", message)
