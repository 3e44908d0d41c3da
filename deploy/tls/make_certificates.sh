#!/usr/bin/env bash
# A private authority and certificates for the scheduler, workers and clients of Dask clusters:
#   make_certificates.sh FOLDER [DAYS]
# FOLDER gets ca.crt, and .crt and .key of each role; tls.yaml, the settings of Dask that name them;
# and ca.key, which no cluster needs: keep it elsewhere, or delete it and begin anew when the
# certificates end (after DAYS, 90).
# Dask lets in whoever has a certificate of the authority, whatever its name. So the authority is
# made here, for one group of people, and is never that of an institution.
set -euo pipefail
umask 077

usage="usage: make_certificates.sh FOLDER [DAYS]"
folder=${1:?$usage}
days=${2:-90}
if [ $# -gt 2 ]; then
  echo "$usage" >&2
  exit 2
fi
if ! [[ $days =~ ^[1-9][0-9]{0,4}$ ]]; then
  echo "error: DAYS is '$days', expected a whole number from 1 to 99999. $usage" >&2
  exit 2
fi
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ -e "$folder/ca.key" ] || [ -e "$folder/ca.crt" ]; then
  echo "error: $folder has an authority already. Give an empty folder." >&2
  exit 1
fi

# What fails leaves no file behind: all is made in here, and put in its place at the end.
work=$(mktemp -d "$folder/.unfinished.XXXXXX")
trap 'rm -rf "$work"' EXIT

make_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

make_key "$work/ca.key"
openssl req -x509 -new -key "$work/ca.key" -sha256 -days "$days" -out "$work/ca.crt" \
  -subj "/CN=scalebrain dask authority" \
  -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
  -addext "keyUsage=critical,keyCertSign,cRLSign"

for role in scheduler worker client; do
  make_key "$work/$role.key"
  # A worker is a server for other workers and a client of the scheduler, so all may be both.
  openssl req -new -key "$work/$role.key" -subj "/CN=scalebrain $role" |
    openssl x509 -req -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -sha256 \
      -days "$days" -out "$work/$role.crt" -extfile <(
        echo "basicConstraints=critical,CA:FALSE"
        echo "keyUsage=critical,digitalSignature"
        echo "extendedKeyUsage=serverAuth,clientAuth"
      ) 2>/dev/null
done
rm -f "$work/ca.srl"

quoted=${folder//\'/\'\'} # within the quotes of YAML
cat >"$work/tls.yaml" <<END
distributed:
  comm:
    require-encryption: true
    tls:
      ca-file: '$quoted/ca.crt'
      scheduler: {cert: '$quoted/scheduler.crt', key: '$quoted/scheduler.key'}
      worker: {cert: '$quoted/worker.crt', key: '$quoted/worker.key'}
      client: {cert: '$quoted/client.crt', key: '$quoted/client.key'}
END
mv "$work"/* "$folder"
echo "$folder/tls.yaml: name it in DASK_CONFIG where scheduler, workers or a study start"
