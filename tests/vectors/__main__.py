"""`python -m vectors`: asks this kernel and a guest's anew, and puts their answers on file if they agree."""

import sys

from lab import claim
from lab.errors import LabError
from lab.lan import Lan
from lab.progress import Progress
from vectors import asking, cases


def main() -> int:
    """Regenerate the file; the exit code is 1 where kernels differ from each other."""
    progress = Progress()
    answers: dict[cases.Case, tuple[int, ...]] = {}
    origin = []
    try:
        with Lan(claim.unique("lbvec"), nodes=1, guests=1) as lan:
            for host, kernel in (
                (lan.nodes[0], "nft"),
                (lan.nodes[0], "xt_cluster"),
                (lan.guests[0], "clusterip"),
            ):
                release = host.run(["uname", "-r"]).stdout.strip()
                progress.say(f"asking {kernel} of Linux {release}")
                said = asking.ask(host, kernel)
                if wrong := [case for case in said if said[case] != answers.get(case, said[case])]:
                    print(
                        f"{kernel} of Linux {release} differs in {len(wrong)} cases: {wrong[0]}",
                        file=sys.stderr,
                    )
                    return 1
                answers |= said
                origin.append(f"{kernel}: {len(said)} cases of {cases.TUPLES} packets, Linux {release}")
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    cases.write(answers, origin)
    print(f"{cases.DATA.name}: {len(answers)} cases, {cases.DATA.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
