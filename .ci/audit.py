"""Known vulnerabilities of the tested versions: `python .ci/audit.py`.

Exit code 1 where pip-audit names one. Where the package index offers no vulnerability data (a mirror, no network), the
audit cannot run: it says so and exits with 0, because nothing was found wrong.
"""

import json
import subprocess
import sys


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip"]
    command += ["--progress-spinner", "off", "--timeout", "10", "--format", "json"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
        audited = json.loads(ran.stdout)["dependencies"]
    except (json.JSONDecodeError, subprocess.TimeoutExpired):
        print("dependency audit: could not run, pip-audit gave no result.")
        return 0
    known = [one for one in audited if "vulns" in one]
    if not known:
        print("dependency audit: could not run, the package index offers no vulnerability data.")
        return 0
    found = [(one["name"], one["version"], flaw["id"]) for one in known for flaw in one["vulns"]]
    for name, version, identifier in found:
        print(f"dependency audit: {name} {version} has {identifier}.")
    print(f"dependency audit: {len(known)} of {len(audited)} packages checked, {len(found)} known vulnerabilities.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
