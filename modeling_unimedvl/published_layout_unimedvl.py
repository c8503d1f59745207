def is_published_layout(folder) -> bool:
    return False


def published_config_dict(folder, weights=None) -> dict:
    raise ValueError("placeholder")


def prepare_direct_load(folder) -> dict:
    return {}
