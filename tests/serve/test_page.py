"""The page as files: what a browser would refuse or miss."""

import re
from pathlib import Path

import httpx

from cm3jax.serve import app

PAGE = Path(app.__file__).parent / "page"
HTML, CSS = ((PAGE / name).read_text() for name in ("index.html", "page.css"))
MODULES = {path.name: path.read_text() for path in sorted(PAGE.glob("*.js"))}
JS = "\n".join(MODULES.values())


def test_it_is_served_and_loads_nothing_from_elsewhere(server):
    paths = [("/", "text/html"), ("/page.css", "text/css")]
    paths += [(f"/{name}", "text/javascript") for name in MODULES]
    for path, kind in paths:
        answer = httpx.get(f"{server.url}{path}")
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"(https?:)?//[a-z]", re.sub(r"^//.*$", "", answer.text, flags=re.M))


def test_its_script_finds_what_it_looks_for():
    ids = set(re.findall(r'\bid="(\w+)"', HTML))
    asked = set(re.findall(r'\$\("(\w+)"\)', JS)) | set(re.findall(r'\bnumber\("(\w+)"\)', JS))
    assert asked <= ids
    assert len(asked) > 15


def test_no_text_becomes_html():
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", JS)
    assert "style=" not in HTML  # the policy refuses it
    assert not re.search(r"<script>|\bon\w+=", HTML)


def test_everything_has_a_name_for_a_screen_reader():
    for tag in re.findall(r"<(?:input|select|textarea|canvas|dialog)\b[^>]*>", HTML):
        name = re.search(r'\bid="(\w+)"', tag)[1]
        labelled = "aria-label" in tag or f'for="{name}"' in HTML
        assert labelled or re.search(rf"<label[^>]*>[^\n]*{re.escape(tag)}", HTML), tag


def test_its_modules_import_what_others_export():
    """A wrong name would leave the page dead, with the reason only in the browser's console."""
    exported = {
        name: set(re.findall(r"^export (?:async )?(?:function\*?|const) ([$\w]+)", text, re.M))
        for name, text in MODULES.items()
    }
    imports = [
        (importer, names, module)
        for importer, text in MODULES.items()
        for names, module in re.findall(r'^import \{ (.+) \} from "\./(.+)";$', text, re.M)
    ]
    assert len(imports) == len(re.findall(r"^import ", JS, re.M)) > 10
    for importer, names, module in imports:
        asked = set(names.split(", "))
        assert asked <= exported[module], importer
        body = re.sub(r"^import .*$", "", MODULES[importer], flags=re.M)
        unused = [
            name for name in asked if not re.search(rf"(?<![\w$]){re.escape(name)}(?!\w)", body)
        ]
        assert not unused, f"{importer}: {unused}"
