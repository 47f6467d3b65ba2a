"""A reader who looks at every cell, moves every control with keys, and notes whatever is wrong. Holds no test.

Nothing here knows a notebook or a widget by name: what is new is checked as well.
"""

from dataclasses import dataclass, field

SETTLED = """() => new Promise((done) => {
  const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
  let quiet = 0;
  const look = () => {
    quiet = kernel.status === "idle" ? quiet + 1 : 0;
    if (quiet > 5) done(); else setTimeout(look, 40);
  };
  look();
})"""
# what a callback raises reaches no cell: JupyterLab puts it into its log
HEAR_KERNEL = """() => {
  window.kernelErrors = [];
  const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
  kernel.anyMessage.connect((_, { msg, direction }) => {
    const { msg_type } = msg.header, asked = msg.parent_header.msg_type;
    if (direction !== "recv" || asked === "execute_request") return;
    // JupyterLab asks each new kernel for widgets, also one that has not imported ipywidgets yet, and is told so twice
    if (/No such comm/.test(msg.content.text)) return;
    if (msg_type === "error") window.kernelErrors.push(`${msg.content.ename}: ${msg.content.evalue}`);
    if (msg_type === "stream" && msg.content.name === "stderr") window.kernelErrors.push(msg.content.text);
  });
}"""
# all of a cell that a reader sees change
SEEN = """(cell) => JSON.stringify([
  [...cell.querySelectorAll(".js-plotly-plot")].map(({ data, layout }) => [data, layout.title, layout.annotations]),
  [...cell.querySelectorAll(".widget-html-content")].map((words) => words.innerHTML),
  [...cell.querySelectorAll("button")].map((button) => [button.textContent, button.disabled])])"""
# figures that are announced and not drawn, not described, or cannot be saved; empty while all is well
LACKING = """(cell, [expected, widgets]) => {
  const lacking = [], drawn = (place) => place.querySelector(".js-plotly-plot .main-svg");
  const statics = [...cell.querySelectorAll(".jp-RenderedPlotly")];
  if (statics.length < expected) lacking.push(`${expected - statics.length} of ${expected} figures are missing`);
  for (const place of [...statics, ...cell.querySelectorAll(".dphrl-plot")])
    if (!drawn(place)) lacking.push("a figure is missing: nothing is drawn where it should be");
  const views = [...cell.querySelectorAll(".jp-OutputArea-output")]
    .filter((place) => place.querySelector(".jupyter-widgets, .dphrl-plot"));
  if (views.length < widgets) lacking.push(`${widgets - views.length} of ${widgets} widgets are missing`);
  for (const row of cell.querySelectorAll(".dphrl-controls"))
    for (const part of row.nextElementSibling.children)
      if (!part.textContent.trim()) lacking.push("a figure is missing: its place under the controls is empty");
  for (const plot of cell.querySelectorAll(".js-plotly-plot")) {
    const words = plot.querySelector(".main-svg[role=img]")?.getAttribute("aria-label") ?? "";
    if (words.length < 20) lacking.push(`a figure has no alternative text, but "${words}"`);
    for (const kind of ["PNG", "SVG"])
      if (!plot.querySelector(`button[aria-label$="${kind}"]`)) lacking.push(`a figure cannot be saved as ${kind}`);
  }
  for (const kind of ["stderr", "error"])
    for (const output of cell.querySelectorAll(`.jupyter-widgets [data-mime-type="application/vnd.jupyter.${kind}"]`))
      lacking.push(`in a widget: ${output.textContent.slice(-300)}`);
  return lacking;
}"""
KINDS = {
    "slider": ".noUi-handle",
    "dropdown": "select",
    "checkbox": "input[type=checkbox]",
    "text": "input[type=text], input:not([type]), textarea",
    "button": "button.jupyter-button",
}
# each control once, in the order of the page, with what a screen reader calls it
CONTROLS = """(cell, kinds) => {
  const all = Object.values(kinds).join(", ");
  const found = [...cell.querySelectorAll(`.jupyter-widgets :is(${all}), .jupyter-widgets:is(${all})`)];
  const unknown = [...cell.querySelectorAll(".dphrl-controls > .jupyter-widgets")]
    .filter((widget) => !widget.matches(all) && !widget.querySelector(all)).map((widget) => widget.className);
  found.forEach((control, place) => { control.dataset.place = place; });
  const name = (control) => control.getAttribute("aria-label") || control.closest("label")?.textContent
    || [...(control.labels ?? [])].map((label) => label.textContent).join("") || control.textContent;
  return { unknown, controls: found.map((control) => ({
    kind: Object.keys(kinds).find((kind) => control.matches(kinds[kind])),
    name: control.matches("select, textarea") && !control.labels.length ? "" : name(control).trim(),
    upload: control.matches(".widget-upload") })) };
}"""
OFF = "(control) => control.disabled || control.getAttribute('aria-disabled') === 'true' || !!control.closest('[disabled]')"
# marks what has the focus; what can be reached and was not: the controls, and the buttons that save the figures
REACHED = """(cell) => {
  document.activeElement.dataset.reached = "yes";
  const wanted = [...cell.querySelectorAll("[data-place], .modebar-btn[aria-label^='Download plot']")];
  return wanted.filter((part) => !part.dataset.reached && !part.disabled && !part.closest("[disabled]"))
    .map((part) => part.getAttribute("aria-label") || part.closest(".jupyter-widgets").textContent.slice(0, 40));
}"""
TABLE = {"name": "counts.csv", "mimeType": "text/csv", "buffer": b"model,problem,n,c\nmine,p,8,1\nours,p,8,4\n"}


@dataclass
class Report:
    """What is wrong, each with its cell; and which controls change nothing that is seen, which need not be wrong."""

    problems: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    moved: int = 0


def listen(notebook) -> None:
    """From here on notice what widgets raise in the kernel; before anything is run."""
    notebook.page.evaluate(HEAR_KERNEL)


def read(notebook) -> Report:
    """Look at every code cell that shows something, and move each of its controls."""
    report = Report()
    for index, outputs in enumerate(notebook.outputs()):
        shown = [output["data"] for output in outputs if "data" in output]
        figures = sum("application/vnd.plotly.v1+json" in data for data in shown)
        widgets = sum("application/vnd.jupyter.widget-view+json" in data for data in shown)
        told = [f"cell {index}: {problem}" for problem in _unshown(shown)]
        if figures or widgets:
            cell = notebook.go_to(index)
            told += [
                f"cell {index}: {problem}" for problem in _read_cell(notebook, cell, [figures, widgets], report, index)
            ]
        report.problems += dict.fromkeys(told)
    report.problems += [f"a widget raised {error}" for error in notebook.page.evaluate("() => window.kernelErrors")]
    report.problems += [f"console: {error}" for error in notebook.watch.errors]
    report.problems += [f"request to another machine: {url}" for url in notebook.watch.outside]
    return report


def _unshown(shown: list[dict]) -> list[str]:
    words = [data for data in shown if "application/vnd.plotly.v1+json" not in data and "text/html" not in data]
    found = [
        text for data in words if (text := "".join(data.get("text/plain", ""))).startswith(("Figure(", "FigureWidget("))
    ]
    return [f"a figure is shown as text: {text[:60]}" for text in found]


def _read_cell(notebook, cell, expected: list[int], report: Report, index: int) -> list[str]:
    lacking = _lacking(notebook, cell, expected, notebook.patience)
    listed = cell.evaluate(CONTROLS, KINDS)
    problems = lacking + [f"a control of an unknown kind: {kind}" for kind in listed["unknown"]]
    problems += [f"a {c['kind']} has no name" for c in listed["controls"] if not c["name"]]
    problems += _not_reached(notebook.page, cell) if listed["controls"] else []
    unmoved = lambda controls: [(i, told) for i, told in controls if not _move(notebook, cell, i, told, report, index)]
    waiting = unmoved(enumerate(listed["controls"]))
    for place, told in waiting:  # what is switched off may be switched on by another control, and a button by time
        _switch_on(notebook, cell, place, told["kind"])
    waiting = unmoved(waiting)
    problems += [
        f"the {told['kind']} {told['name']!r} stays switched off" for _, told in waiting if told["kind"] != "button"
    ]
    return problems + _lacking(notebook, cell, expected, 0.25 if lacking else notebook.patience)


def _lacking(notebook, cell, expected: list[int], patience: float) -> list[str]:
    """What is missing once the page has had so many seconds to draw it."""
    for _ in range(int(patience / 0.25)):
        if not (lacking := cell.evaluate(LACKING, expected)):
            return []
        notebook.page.wait_for_timeout(250)
    return lacking


def _not_reached(page, cell) -> list[str]:
    """The controls and saving buttons that Tab does not come to."""
    cell.locator("[data-place='0']").focus()
    for _ in range(150):
        if not (left := cell.evaluate(REACHED)):
            return []
        page.keyboard.press("Tab")
    return [f"Tab does not reach {name!r}" for name in left]


def _switch_on(notebook, cell, place: int, kind: str) -> None:
    """Choose one option after another of the cell's dropdowns until the control is switched on; wait for a button."""
    control = cell.locator(f"[data-place='{place}']")
    if kind == "button":
        for _ in range(40):
            if control.evaluate(OFF):
                notebook.page.wait_for_timeout(250)
        return
    for select in cell.locator("select[data-place]").all():
        before = select.input_value()
        for option in select.locator("option").evaluate_all("options => options.map(option => option.value)"):
            select.select_option(option)
            notebook.page.evaluate(SETTLED)
            if not control.evaluate(OFF):
                return
        select.select_option(before)


def _move(notebook, cell, place: int, told: dict, report: Report, index: int) -> bool:
    """Move one control to two other positions; False where it is switched off."""
    control, seen = cell.locator(f"[data-place='{place}']"), cell.evaluate(SEEN)
    if control.evaluate(OFF):
        return False
    changed = False
    for step in STEPS["upload" if told["upload"] else told["kind"]]:
        step(notebook.page, control)
        notebook.page.evaluate(SETTLED)
        notebook.page.wait_for_timeout(150)  # a second figure waits until the hand rests
        for _ in range(4):
            changed = changed or cell.evaluate(SEEN) != seen
            notebook.page.wait_for_timeout(0 if changed else 250)
    report.moved += 1
    if not changed:
        report.idle.append(f"cell {index}: {told['kind']} {told['name']!r}")
    return True


def _press(*keys: str):
    return lambda page, control: [control.focus(), *(page.keyboard.press(key) for key in keys)]


def _choose(index: int):
    """Choose the last option, or the first."""

    def choose(_page, control):
        options = control.locator("option").evaluate_all("options => options.map(option => option.value)")
        if options:
            control.select_option(options[index])

    return choose


def _type(words: str | None):
    """Type `words` and leave the field; None: what stood there first."""

    def typed(page, control):
        before = control.input_value()
        control.evaluate("(control, before) => { control.dataset.before ??= before; }", before)
        control.fill(control.get_attribute("data-before") if words is None else words)
        control.press("Tab")

    return typed


def _upload(page, control):
    with page.expect_file_chooser() as chooser:
        control.click()
    chooser.value.set_files(TABLE)
    page.wait_for_timeout(500)


STEPS = {
    "slider": [_press("End"), _press("Home")],
    "dropdown": [_choose(-1), _choose(0)],
    "checkbox": [_press("Space"), _press("Space")],
    "text": [_type("nowhere"), _type(None)],
    "button": [_press("Enter")],
    "upload": [_upload],
}
