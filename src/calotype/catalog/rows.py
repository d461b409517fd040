"""Between rows of the tables and the nouns of the model."""

from collections.abc import Mapping, Sequence
from typing import Any

from calotype.model import (
    Architecture,
    Caching,
    Consistency,
    Generation,
    Image,
    ImageDisk,
    ManagedDisk,
    Network,
    OsState,
    OsType,
    Provenance,
    PurchasePlan,
    Recommended,
    Scope,
    Shelf,
    SourceKind,
    Stage,
    Verdict,
    VirtualMachine,
)

Row = Mapping[str, Any]


def scope_row(scope: Scope) -> dict[str, str]:
    """The columns that say where a resource is."""
    return {"subscription": scope.subscription, "resource_group": scope.group}


def to_scope(row: Row) -> Scope:
    """Where the resource of a row is."""
    return Scope(row["subscription"], row["resource_group"])


def plan_row(plan: PurchasePlan) -> dict[str, str]:
    """The columns that say which plan."""
    return {"publisher": plan.publisher, "product": plan.product, "name": plan.name}


def plan_json(plan: PurchasePlan | None) -> dict[str, str] | None:
    """A plan as resources keep it."""
    return None if plan is None else plan_row(plan)


def to_plan(value: Row | None) -> PurchasePlan | None:
    """A plan out of what the catalogue keeps."""
    return None if value is None else PurchasePlan(**value)


def image_row(image: Image) -> dict[str, Any]:
    """The row of ``images``."""
    return {
        "id": image.id,
        **scope_row(image.scope),
        "shelf": image.shelf.value,
        "name": image.name,
        "os_type": image.os_type.value,
        "os_state": image.os_state.value,
        "architecture": image.architecture.value,
        "generation": image.generation.value,
        "label": image.label,
        "family": image.family,
        "description": image.description,
        "eula": image.eula,
        "vcpus": image.recommended.vcpus,
        "memory": image.recommended.memory,
        "tags": image.tags,
        "stage": image.stage.value,
        "verdict": image.verdict.value if image.verdict else None,
        "provenance": _provenance_json(image.provenance),
        "parents": list(image.parents),
        "plan": plan_json(image.plan),
        "entitlement": image.entitlement,
        "created_at": image.created_at,
    }


def image_disk_rows(image: Image) -> list[dict[str, Any]]:
    """The rows of ``image_disks``, the OS disk first."""
    return [
        {
            "image_id": image.id,
            "position": position,
            "lun": disk.lun,
            "index": disk.index,
            "size": disk.size,
            "caching": disk.caching.value,
        }
        for position, disk in enumerate(image.disks)
    ]


def descent_rows(image: Image) -> list[dict[str, Any]]:
    """The rows of ``descent``, the OS disk's first."""
    return [
        {"child_id": image.id, "position": position, "parent_id": parent}
        for position, parent in enumerate(image.parents)
    ]


def to_image(row: Row, disk_rows: Sequence[Row]) -> Image:
    """An image out of its row and its disks' rows (ordered by position)."""
    os_disk, *data = [
        ImageDisk(index=d["index"], size=d["size"], caching=Caching(d["caching"]), lun=d["lun"])
        for d in disk_rows
    ]
    return Image(
        id=row["id"],
        name=row["name"],
        os_type=OsType(row["os_type"]),
        os_state=OsState(row["os_state"]),
        architecture=Architecture(row["architecture"]),
        generation=Generation(row["generation"]),
        label=row["label"],
        family=row["family"],
        description=row["description"],
        eula=row["eula"],
        recommended=Recommended(vcpus=row["vcpus"], memory=row["memory"]),
        tags=dict(row["tags"]),
        stage=Stage(row["stage"]),
        verdict=Verdict(row["verdict"]) if row["verdict"] else None,
        provenance=_to_provenance(row["provenance"]),
        os_disk=os_disk,
        data_disks=tuple(data),
        created_at=row["created_at"],
        scope=to_scope(row),
        shelf=Shelf(row["shelf"]),
        parents=tuple(row["parents"]),
        plan=to_plan(row["plan"]),
        entitlement=row["entitlement"],
    )


def disk_row(disk: ManagedDisk) -> dict[str, Any]:
    """The row of ``disks``."""
    return {
        "id": disk.id,
        **scope_row(disk.scope),
        "name": disk.name,
        "size": disk.size,
        "index": disk.index,
        "image_id": disk.image_id,
        "vm_id": disk.vm_id,
        "lun": disk.lun,
        "caching": disk.caching.value,
        "tags": disk.tags,
        "created_at": disk.created_at,
        "overlay": disk.overlay,
    }


def to_disk(row: Row) -> ManagedDisk:
    """A managed disk out of its row."""
    fields = {
        **_without_scope(row),
        "scope": to_scope(row),
        "caching": Caching(row["caching"]),
        "tags": dict(row["tags"]),
    }
    return ManagedDisk(**fields)


def vm_row(vm: VirtualMachine) -> dict[str, Any]:
    """The row of ``vms``."""
    return {
        "id": vm.id,
        **scope_row(vm.scope),
        "name": vm.name,
        "vcpus": vm.vcpus,
        "memory": vm.memory,
        "os_type": vm.os_type.value,
        "generation": vm.generation.value,
        "architecture": vm.architecture.value,
        "image_id": vm.image_id,
        "os_state": vm.os_state.value,
        "computer_name": vm.computer_name,
        "admin_user": vm.admin_user,
        "ssh_port": vm.ssh_port,
        "forwards": [list(pair) for pair in vm.forwards],
        "mac": vm.mac,
        "network": vm.network.value,
        "uid": vm.uid,
        "deallocated": vm.deallocated,
        "generalized": vm.generalized,
        "notes": list(vm.notes),
        "tags": vm.tags,
        "plan": plan_json(vm.plan),
        "entitlement": vm.entitlement,
        "created_at": vm.created_at,
    }


def to_vm(row: Row, disk_rows: Sequence[Row]) -> VirtualMachine:
    """A VM out of its row and the rows of the disks that are attached to it."""
    fields = {
        **_without_scope(row),
        "scope": to_scope(row),
        "plan": to_plan(row["plan"]),
        "os_type": OsType(row["os_type"]),
        "generation": Generation(row["generation"]),
        "architecture": Architecture(row["architecture"]),
        "os_state": OsState(row["os_state"]),
        "network": Network(row["network"]),
        "forwards": tuple((host, guest) for host, guest in row["forwards"]),
        "notes": tuple(row["notes"]),
        "tags": dict(row["tags"]),
        "disks": tuple(to_disk(d) for d in disk_rows),
    }
    return VirtualMachine(**fields)


def _without_scope(row: Row) -> dict[str, Any]:
    return {key: row[key] for key in row if key not in ("subscription", "resource_group")}


def _provenance_json(provenance: Provenance) -> dict[str, Any]:
    return {
        "kind": provenance.kind.value,
        "source": provenance.source,
        "source_format": provenance.source_format,
        "sha256": provenance.sha256,
        "vm_id": provenance.vm_id,
        "image_id": provenance.image_id,
        "consistency": provenance.consistency.value if provenance.consistency else None,
        "notes": list(provenance.notes),
    }


def _to_provenance(value: Row) -> Provenance:
    consistency = value["consistency"]
    fields = {
        **value,
        "kind": SourceKind(value["kind"]),
        "consistency": Consistency(consistency) if consistency else None,
        "notes": tuple(value["notes"]),
    }
    return Provenance(**fields)
