"""Which packs an Index needs: what a reader has to ask a server for that lists nothing."""

from calotype.store.digest import as_rows
from calotype.store.pack import Kind, Pack
from calotype.store.reader import LeafReader
from calotype.store.repository import Repository


def packs_of(repository: Repository, index: str) -> dict[str, Pack]:
    """The packs, by key, in which the leaves and the chunks of an Index are found.

    Raises:
        NotFound: there is no such Index.
        StoreDamaged: something that it needs is missing.
    """
    root = repository.root(index)
    domain = repository.domain(root.domain)
    packs = repository.packs
    reader = LeafReader(repository.objects, packs, domain, root)
    packs.refresh()
    found: dict[str, Pack] = {}
    for region, digest in root.leaves.items():
        leaf = reader.leaf(region)
        if leaf is None:
            continue
        places = reader.places(leaf)
        for some in (places, packs.find(Kind.LEAF, domain.name, as_rows([digest]))):
            found |= {pack.key: pack for _number, pack, _here, _chunks in packs.by_pack(some)}
    return found
