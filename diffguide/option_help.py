def text(loader, config_name, words):
    return "help\n"
