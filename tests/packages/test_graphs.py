"""Graph networks: jraph with networks of Haiku."""

import jax
import jax.numpy as jnp
import pytest
from zoo.case import floats

from packages import build
from packages.case import INPUT, MARKS, ONE, OUTPUT, Model, check

pytestmark = MARKS


def _built(net):
    """`net(jraph, haiku, graph)` on two graphs in one batch."""

    def fun(nodes, edges, of_graphs):
        import haiku as hk
        import jraph

        graph = jraph.GraphsTuple(
            nodes, edges, jnp.array([1, 2, 0, 4, 0, 2, 3]), jnp.array([0, 1, 2, 3, 4, 0, 1]), of_graphs,
            jnp.array([3, 2]), jnp.array([3, 4]),
        )  # fmt: skip
        return net(jraph, hk, graph)

    return build.haiku(fun, floats(5, 4), floats(7, 3), floats(2, 2))


def _network(jraph, hk, graph):
    def update():
        return jraph.concatenated_args(hk.nets.MLP((12, 8)))

    graph = jraph.GraphMapFeatures(hk.Linear(8), hk.Linear(8), hk.Linear(8))(graph)
    graph = jraph.GraphNetwork(update(), update(), update())(graph)
    return hk.Linear(3)(graph.globals)


def _convolutional(jraph, hk, graph):
    for width in (8, 12):
        graph = jraph.GraphConvolution(hk.Linear(width), add_self_edges=True)(graph)
        graph = graph._replace(nodes=jax.nn.relu(graph.nodes))
    return hk.Linear(3)(graph.nodes)


def _attention(jraph, hk, graph):
    score = hk.Linear(1)
    graph = jraph.GAT(
        hk.Linear(8),
        lambda sent, received, _: jax.nn.leaky_relu(score(jnp.concatenate([sent, received], -1))),
        jax.nn.relu,
    )(graph)
    return hk.Linear(3)(graph.nodes)


MODELS = {
    "network": Model(
        "Graph network of edges, nodes and globals",
        "jraph",
        lambda: _built(_network),
        0.6,
        {r"/linear(_[12])?/w\[0\]": INPUT, r"/linear_3/(w\[1\]|b)": OUTPUT},
        {r"/w$": 0},
    ),
    "convolutional": Model(
        "Graph convolution",
        "jraph",
        lambda: _built(_convolutional),
        0.6,
        {r"/linear/w\[0\]": INPUT, r"/linear_2/(w\[1\]|b)": OUTPUT},
        {r"/w$": 0},
    ),
    "attention": Model(
        "Graph attention",
        "jraph",
        lambda: _built(_attention),
        0.4,
        # Haiku numbers modules as they are made: the score first.
        {r"/linear_1/w\[0\]": INPUT, r"/linear/(w\[1\]|b)": ONE, r"/linear_2/(w\[1\]|b)": OUTPUT},
        {r"/w$": 0},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model(name, record_property):
    check(MODELS[name], record_property)
