import pytest

from edgeport_export.rewrites.names import is_wrapper_node, levels_name


@pytest.mark.parametrize(
    ("name", "outside"),
    [("edgeport/Cast", True), ("layer1.0.conv1/Conv", False), ("edgeport./Relu", False), ("network/edgeport/Cast", False), ("", False)],
)
def test_nodes_outside_the_network_are_known_by_their_name(name: str, outside: bool) -> None:
    assert is_wrapper_node(name) == outside


def test_levels_are_named_after_their_output() -> None:
    assert levels_name("image") == "image.levels"
