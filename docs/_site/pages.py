"""What the pages need to be a site: they are written for a checkout, where README.md comes first and links lead to
files anywhere in the tree."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import xattn
from xattn.ops.table import OPS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Pages of the checkout's root, and where they are on the site.
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}

_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> None:
    """A page for each op, after the contract."""
    for section in config.nav or ():
        for pages in section.values():
            if "contract.md" in pages:
                pages += [{name: f"ops/{name}.md"} for name in OPS]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text()))
    files.append(File.generated(config, "_site.css", content=(DOCS / "_site" / "site.css").read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are on the site: to a page of it, or to the file in the repository."""
    uri = page.file.src_uri
    if uri == "api.md":
        markdown = _api(markdown)
    source = next((name for name, at in OUTSIDE.items() if at == uri), f"docs/{uri}")
    folder = (ROOT / source).parent
    up = "../" * uri.count("/")

    def link(match: re.Match[str]) -> str:
        text, target, part = match[1], match[2], match[3] or ""
        name = (folder / target).resolve().relative_to(ROOT).as_posix()
        at = OUTSIDE.get(name) or name.removeprefix("docs/")
        found = files.get_file_from_path(at)
        if found is not None and found.inclusion.is_included() and (name in OUTSIDE or name.startswith("docs/")):
            text = _title(name) if text.endswith(target) and target.endswith(".md") else text
            return f"[{text}]({up}{at}{part})"
        kind = "tree" if (ROOT / name).is_dir() else "blob"
        return f"[{text}]({config.repo_url}/{kind}/main/{name}{part})"

    return _LINK.sub(link, markdown)


def _api(markdown: str) -> str:
    """The page of the API, with what each op has."""
    classes = [name for name in xattn.__all__ if re.fullmatch(r"\w+(Kernel|Request)", name)]
    for place, names in {"ops": list(OPS), "kernels": classes}.items():
        markdown = markdown.replace(f"{{{{ {place} }}}}", "\n".join(f"::: xattn.{name}" for name in names))
    return markdown


def _title(name: str) -> str:
    """What a link says that in a checkout says the file's name: the page's first heading."""
    return (ROOT / name).read_text().partition("# ")[2].partition("\n")[0]
