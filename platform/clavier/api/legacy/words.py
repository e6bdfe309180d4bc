"""Two languages at the door: Chinese as the document prints it, English for ``Accept-Language: en``."""

from __future__ import annotations

from django.utils.functional import lazy
from django.utils.translation import get_language
from django.utils.translation.trans_real import parse_accept_lang_header

#: What a machine word of a service means, in front of the service's own (English) sentence.
CHINESE = {
    "already_ended": "任务已经结束",
    "already_exists": "已存在同名对象",
    "already_started": "已经启动",
    "bad_header": "请求头无效",
    "bad_image": "镜像文件无效",
    "bad_name": "名称不合法",
    "bad_path": "路径不合法",
    "bad_value": "参数值不合法",
    "body_too_large": "请求体过大",
    "busy": "系统繁忙，请稍后再试",
    "client_disconnected": "连接中断，请求体不完整",
    "conflicting_fields": "参数相互冲突",
    "content_mismatch": "文件内容与类型不符",
    "csrf_failed": "CSRF 校验失败",
    "duplicate_key": "JSON 中有重复的键",
    "forbidden": "没有权限",
    "idempotency_mismatch": "幂等键已用于另一个请求",
    "in_use": "对象正在使用中",
    "insufficient_storage": "存储空间不足",
    "invalid_token": "令牌无效",
    "malformed_body": "请求体无法解析",
    "malformed_json": "JSON 格式错误",
    "method_not_allowed": "不支持的请求方法",
    "missing_column": "数据缺少需要的列",
    "not_a_choice": "取值不在允许范围内",
    "not_a_folder": "不是目录",
    "not_authenticated": "未登录",
    "not_found": "对象不存在",
    "not_ready": "对象尚未就绪",
    "out_of_range": "数值超出范围",
    "path_outside_root": "路径越界",
    "quota_exceeded": "配额不足",
    "required": "缺少必填参数",
    "scope_missing": "API 密钥权限不足",
    "session_expired": "会话已过期",
    "too_deep": "JSON 嵌套过深",
    "too_long": "内容过长",
    "too_many": "数量过多",
    "too_many_parts": "上传的文件过多",
    "too_many_requests": "请求过于频繁",
    "unknown_field": "未知的参数",
    "unprocessable": "当前环境无法完成该请求",
    "unschedulable": "没有能够运行该任务的节点",
    "unsupported_media_type": "不支持的 Content-Type",
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
    """A service's sentence, with what its machine word means in front when the request is in Chinese."""
    return say(f"{CHINESE[code]}：{message}" if code in CHINESE else message, message)
