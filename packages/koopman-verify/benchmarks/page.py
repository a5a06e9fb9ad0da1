def to_markdown(results):
    return ""
