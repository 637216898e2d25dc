"""A chat app's client, written from the proto files alone: sends, grabs, streams, watches.

Usage: client.py PROTO_FOLDER GRPC_PORT ADMIN_PORT

Prints one word per step that worked; a failed step raises.
"""

import importlib
import pathlib
import queue
import sys
import tempfile

import grpc
import grpc_tools
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc

DEADLINE_S = 30


def generate(proto: pathlib.Path, out: pathlib.Path) -> None:
    """Compiles the contract; google.rpc comes from googleapis-common-protos."""
    site = pathlib.Path(status_pb2.__file__).parents[2]
    wellknown = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    files = [str(p.relative_to(proto)) for p in sorted(proto.glob("redenvelope/v1/*.proto"))]
    arguments = [f"-I{proto}", f"-I{site}", f"-I{wellknown}"]
    arguments += [f"--python_out={out}", f"--grpc_python_out={out}"]
    assert protoc.main(["protoc", *arguments, *files]) == 0


def money(minor_units: int, v1):
    return v1.Money(currency_code="CNY", minor_units=minor_units)


def refused(call, code: grpc.StatusCode, detail_type):
    """The call must fail with this code and carry this detail."""
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, error
        trailing = dict(error.trailing_metadata())
        status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        for packed in status.details:
            detail = detail_type()
            if packed.Unpack(detail):
                return detail
        raise AssertionError(f"no {detail_type.__name__} in {status}")
    raise AssertionError("the call was not refused")


def main() -> None:
    proto, grpc_port, admin_port = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    with tempfile.TemporaryDirectory() as out:
        generate(proto, pathlib.Path(out))
        sys.path.insert(0, out)
        walk(grpc_port, admin_port)


def walk(grpc_port: str, admin_port: str) -> None:
    load = importlib.import_module
    envelope = load("redenvelope.v1.envelope_pb2")
    service = load("redenvelope.v1.envelope_service_pb2")
    account = load("redenvelope.v1.account_service_pb2")
    admin = load("redenvelope.v1.admin_service_pb2")
    v1 = load("redenvelope.v1.money_pb2")
    channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}")
    envelopes = load("redenvelope.v1.envelope_service_pb2_grpc").EnvelopeServiceStub(channel)
    accounts = load("redenvelope.v1.account_service_pb2_grpc").AccountServiceStub(channel)
    operators = load("redenvelope.v1.admin_service_pb2_grpc").AdminServiceStub(
        grpc.insecure_channel(f"127.0.0.1:{admin_port}")
    )

    deposit = account.DepositRequest(owner="alice", request_id="d1", amount=money(10_000, v1))
    assert accounts.Deposit(deposit, timeout=DEADLINE_S).balance.available.minor_units == 10_000
    assert accounts.Deposit(deposit, timeout=DEADLINE_S).replayed
    print("deposited")

    create = service.CreateEnvelopeRequest(
        sender="alice",
        request_id="c1",
        kind=envelope.ENVELOPE_KIND_LUCKY,
        total=money(8_888, v1),
        share_count=20,
        greeting="恭喜发财",
    )
    sent = envelopes.CreateEnvelope(create, timeout=DEADLINE_S).envelope
    assert sent.state == envelope.ENVELOPE_STATE_LIVE and sent.greeting == "恭喜发财"
    print("sent")

    grab = service.GrabRequest(envelope_id=sent.envelope_id, grabber="bob")
    first = envelopes.Grab(grab, timeout=DEADLINE_S)
    again = envelopes.Grab(grab, timeout=DEADLINE_S)
    assert first.outcome == service.GRAB_OUTCOME_WON
    assert again.outcome == service.GRAB_OUTCOME_ALREADY_GRABBED
    assert first.share.amount == again.share.amount
    print("grabbed")

    watched = envelopes.WatchEnvelope(
        service.WatchEnvelopeRequest(envelope_id=sent.envelope_id, viewer="alice"),
        timeout=DEADLINE_S,
    )
    assert next(watched).envelope.progress.taken_count == 1

    outgoing: queue.Queue = queue.Queue()
    replies = envelopes.GrabStream(iter(outgoing.get, None), timeout=DEADLINE_S)
    for tag in range(40):
        one = service.GrabRequest(envelope_id=sent.envelope_id, grabber=f"friend-{tag}")
        message = service.GrabStreamRequest(tag=tag, timeout_ms=DEADLINE_S * 1_000, grab=one)
        outgoing.put(message)
    outgoing.put(service.GrabStreamRequest(tag=99, grab=service.GrabRequest(grabber="nobody")))
    outgoing.put(None)
    answers = {reply.tag: reply for reply in replies}
    assert sorted(answers) == [*range(40), 99]
    outcomes = [answers[tag].outcome.outcome for tag in range(40)]
    assert outcomes.count(service.GRAB_OUTCOME_WON) == 19
    assert outcomes.count(service.GRAB_OUTCOME_EMPTY) == 21
    assert answers[99].status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    print("streamed")

    last = None
    for last in watched:
        pass
    assert last.envelope.state == envelope.ENVELOPE_STATE_CLOSED
    assert last.envelope.progress.settled.minor_units == 8_888
    assert last.envelope.best_luck.best_luck
    print("watched")

    bad = service.CreateEnvelopeRequest()
    bad.CopyFrom(create)
    bad.request_id, bad.share_count = "c2", 0
    named = refused(
        lambda: envelopes.CreateEnvelope(bad, timeout=DEADLINE_S),
        grpc.StatusCode.INVALID_ARGUMENT,
        error_details_pb2.BadRequest,
    )
    assert [v.field for v in named.field_violations] == ["share_count"]
    poor = service.CreateEnvelopeRequest()
    poor.CopyFrom(create)
    poor.request_id = "c3"
    why = refused(
        lambda: envelopes.CreateEnvelope(poor, timeout=DEADLINE_S),
        grpc.StatusCode.FAILED_PRECONDITION,
        error_details_pb2.ErrorInfo,
    )
    assert (why.domain, why.reason) == ("redenvelope.v1", "INSUFFICIENT_FUNDS")
    print("refused")

    reflected = services_by_reflection(channel)
    for name in ("EnvelopeService", "AccountService", "InfoService"):
        assert f"redenvelope.v1.{name}" in reflected, reflected
    print("reflected")

    # grpc.health.v1 by hand: an empty request, and a reply whose field 1 is 1 (SERVING).
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"", timeout=DEADLINE_S) == b"\x08\x01"
    print("healthy")

    report = operators.Audit(admin.AuditRequest(operator="olga", reason="a test"), timeout=DEADLINE_S)
    assert report.clean, report
    print("audited")


def services_by_reflection(channel: grpc.Channel) -> str:
    """list_services of both versions, as the text in which the names must occur."""
    texts = []
    for version in ("v1", "v1alpha"):
        call = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
        # ServerReflectionRequest{list_services: ""} is field 7, a string of one byte.
        reply = next(call(iter([b"\x3a\x01\x2a"]), timeout=DEADLINE_S))
        texts.append(reply.decode("utf-8", "replace"))
    assert all("redenvelope.v1.EnvelopeService" in text for text in texts), texts
    return texts[0]


if __name__ == "__main__":
    main()
