"""The site's tables of arguments: what stands beside or above each one."""

from tools.site.members import fields, function


def example(
    one,  # the first
    # a second one, of which there is more
    # to say
    two=2,
    three=3,
    # kept beside,
    four=4,  # the fourth
    # returns what there is
) -> tuple[int, int]:
    "Says nothing."
    # no argument's
    return one, two


class Example:
    # how long it is
    length: int = 3
    width: int = 4  # how wide


def test_comments_belong_to_the_argument_beside_or_below_them():
    table = function(example, "example")
    for row in ("<code>one</code> |  |  | the first |", "<code>two</code> |  | `2` | a second one, of which there is more to say |", "<code>three</code> |  | `3` |  |", "<code>four</code> |  | `4` | the fourth |"):
        assert row in table, (row, table)
    assert "| what there is |" in table and "no argument's" not in table
    assert [(name, said) for name, _, _, said in fields(Example)] == [("length", "how long it is"), ("width", "how wide")]


def test_a_class_of_a_notebook_is_read_from_its_module():
    "Python knows no file of a class that a cell defines; what the cell exports has one."
    made = {"__name__": "__main__"}
    exec("from dataclasses import dataclass\n@dataclass\nclass Camera:\n    sdd: float\n", made)
    exec("class Unheard:\n    length: int = 3\n", made)
    names = [name for name, *_ in fields(made["Camera"])]
    assert names[:3] == ["sdd", "height", "width"] and "parallel" in names, names
    assert fields(made["Unheard"]) == []
