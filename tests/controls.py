"""Turning a widget's controls without a kernel. Holds no test."""


def shown(widget):
    return [figure if isinstance(figure, str) else figure.to_json() for figure in widget.figures]


def change(widget, control, value):
    before = shown(widget)
    widget.controls[control].value = value
    return before != shown(widget)
