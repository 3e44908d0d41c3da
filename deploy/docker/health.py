"""Health check of a container: what answers at SCALEBRAIN_HEALTH_URL, if anything is to answer."""

import os
import sys
from urllib.error import URLError
from urllib.request import urlopen

url = os.environ.get("SCALEBRAIN_HEALTH_URL", "")
if url.startswith("http://"):
    try:
        with urlopen(url, timeout=3) as answer:  # noqa: S310  # nosec B310
            if answer.read(16) != b"ok":
                sys.exit(f"{url}: answers, but not with ok")
    except (URLError, OSError) as error:
        sys.exit(f"{url}: {error}")
elif url:
    sys.exit(f"SCALEBRAIN_HEALTH_URL={url}: expected http://HOST:PORT/health")
