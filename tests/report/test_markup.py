import pytest

from lerobot_smoothvla.report.markup import Html, details, facts_list, join, table, tag
from lerobot_smoothvla.report.page import document, write_page

EVIL = "<script>alert('&')</script>"
ESCAPED = "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;"


def test_text_is_escaped_and_markup_is_not():
    assert tag("p", EVIL) == f"<p>{ESCAPED}</p>"
    assert tag("p", tag("b", "a")) == "<p><b>a</b></p>"
    assert join(["<", Html("<br>")]) == "&lt;<br>"


def test_an_attribute_cannot_be_left_early():
    assert tag("a", title='"><script>') == '<a title="&quot;&gt;&lt;script&gt;"></a>'


def test_attributes_have_the_names_of_html():
    assert tag("meta", http_equiv="refresh", content=5) == '<meta http-equiv="refresh" content="5">'
    assert tag("video", controls=True, muted=False, src=None) == "<video controls></video>"
    assert tag("td", class_="x") == '<td class="x"></td>'


@pytest.mark.parametrize(
    "made",
    [
        table(EVIL, [EVIL], [[EVIL, EVIL]]),
        details(EVIL, EVIL),
        facts_list([(EVIL, EVIL)]),
        document(EVIL, [EVIL]),
    ],
    ids=["table", "details", "facts", "document"],
)
def test_every_building_block_escapes_what_it_is_given(made: str):
    assert ESCAPED in made and EVIL not in made


def test_a_table_names_its_columns_and_its_rows():
    made = table("Rates", ["task", "n"], [["a", "1"], ["b", "2"]])
    assert "<caption>Rates</caption>" in made
    assert made.count('<th scope="col">') == 2 and made.count('<th scope="row">') == 2
    assert "<td>1</td>" in made


def test_a_page_forbids_the_browser_to_load_anything():
    page = document("Title", [])
    assert "default-src &#x27;none&#x27;" in page
    assert "http://" not in page and "https://" not in page


def test_only_a_live_page_loads_itself_again():
    assert 'http-equiv="refresh"' in document("Title", [], live=True)
    assert 'http-equiv="refresh"' not in document("Title", [])


def test_a_page_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="page .*file/page.html cannot be written"):
        write_page(tmp_path / "file" / "page.html", "")


def test_a_page_replaces_the_one_before_it_and_leaves_nothing_else(tmp_path):
    for text in ("first", "second"):
        write_page(tmp_path / "page.html", text)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "second"
