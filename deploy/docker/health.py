"""Health check of a container: what answers at SCALEBRAIN_HEALTH_URL, if anything is to answer."""

import os
import sys
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

url = os.environ.get("SCALEBRAIN_HEALTH_URL", "")
if url.startswith("http://"):
    try:
        # http_proxy is for other machines; what is asked here runs in this container
        with build_opener(ProxyHandler({})).open(url, timeout=3) as answer:
            if answer.read(16) != b"ok":
                sys.exit(f"{url}: answers, but not with ok")
    except (URLError, OSError) as error:
        sys.exit(f"{url}: {error}")
elif url:
    sys.exit(f"SCALEBRAIN_HEALTH_URL={url}: expected http://HOST:PORT/health")
