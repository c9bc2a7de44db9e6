"""Read a page: its elements by tag, and the cells of its tables."""

from html.parser import HTMLParser

VOID = {"meta", "br", "wbr", "link", "img", "hr", "input"}


class Element:
    """An element with its attributes, its own text and its children."""

    def __init__(self, tag, attributes):
        self.tag = tag
        self.attributes = dict(attributes)
        self.parts = []

    @property
    def text(self):
        texts = (part if isinstance(part, str) else part.text for part in self.parts)
        return " ".join("".join(texts).split())

    def all(self, tag):
        """Every element of a tag within, in the order of the page."""
        for part in self.parts:
            if isinstance(part, Element):
                if part.tag == tag:
                    yield part
                yield from part.all(tag)

    def by_id(self, name):
        tags = ("section", "div", "article", "table", "form", "output")
        (found,) = [e for tag in tags for e in self.all(tag) if e.attributes.get("id") == name]
        return found


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = [Element("page", {})]

    def handle_starttag(self, tag, attributes):
        element = Element(tag, attributes)
        self.open[-1].parts.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.open[-1].parts.append(Element(tag, attributes))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, text):
        self.open[-1].parts.append(text)


def read(text):
    """Return the root of a page, each of whose elements is closed."""
    reader = _Reader()
    reader.feed(text)
    assert len(reader.open) == 1
    return reader.open[0]


def table(root):
    """Return the header and the lines of the table of rows, as texts."""
    own = root.by_id("table")
    head, *lines = own.all("tr")
    texts = [[cell.text for cell in line.parts if isinstance(cell, Element)] for line in lines]
    return [cell.text for cell in head.all("th")], texts
