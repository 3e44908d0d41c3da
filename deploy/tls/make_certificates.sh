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

folder=${1:?usage: make_certificates.sh FOLDER [DAYS]}
days=${2:-90}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ -e "$folder/ca.key" ] || [ -e "$folder/ca.crt" ]; then
  echo "error: $folder has an authority already. Give an empty folder." >&2
  exit 1
fi

make_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

make_key "$folder/ca.key"
openssl req -x509 -new -key "$folder/ca.key" -sha256 -days "$days" -out "$folder/ca.crt" \
  -subj "/CN=scalebrain dask authority" \
  -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
  -addext "keyUsage=critical,keyCertSign,cRLSign"

for role in scheduler worker client; do
  make_key "$folder/$role.key"
  # A worker is a server for other workers and a client of the scheduler, so all may be both.
  openssl req -new -key "$folder/$role.key" -subj "/CN=scalebrain $role" |
    openssl x509 -req -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -CAcreateserial -sha256 \
      -days "$days" -out "$folder/$role.crt" -extfile <(
        echo "basicConstraints=critical,CA:FALSE"
        echo "keyUsage=critical,digitalSignature"
        echo "extendedKeyUsage=serverAuth,clientAuth"
      ) 2>/dev/null
done
rm -f "$folder/ca.srl"

cat >"$folder/tls.yaml" <<END
distributed:
  comm:
    require-encryption: true
    tls:
      ca-file: $folder/ca.crt
      scheduler: {cert: $folder/scheduler.crt, key: $folder/scheduler.key}
      worker: {cert: $folder/worker.crt, key: $folder/worker.key}
      client: {cert: $folder/client.crt, key: $folder/client.key}
END
echo "$folder/tls.yaml: name it in DASK_CONFIG where scheduler, workers or a study start"
