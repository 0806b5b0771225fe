// What --help says below the options.
import { EXIT_CODE_HELP } from '../command-line/exit-codes.ts'

export const EPILOGUE = `Which way it goes: the node that runs on this host (its API socket), else a peer of dfget's own when supernodes are named, else straight
from the source in parallel ranges. FILE appears when it is complete, or not at all. A download straight from the source that was
interrupted goes on where it was when it is asked for again.

Examples:
  dfget https://releases.example/app.tar.gz                          into the current directory
  dfget https://releases.example/app.tar.gz -O /opt/app.tar.gz --digest sha256:9f86d0…
  dfget https://releases.example/app.tar.gz -O - | tar xz
  dfget -n 10.0.0.1:4980 https://releases.example/app.tar.gz         no node runs here: a peer for 5 minutes
  dfget --limit 20MiB --total-limit 50MiB https://releases.example/app.tar.gz
  dfget --filter 'Expires&Signature' 'https://bucket.example/model.bin?Expires=…&Signature=…'
  DFGET_HEADERS="Authorization: Bearer $TOKEN" dfget https://private.example/app.tar.gz
  dfget -r https://mirror.example/debs/ -O debs --accept-regex '\\.deb$' --max-files 1000

Settings last in ~/.config/skimmer/dfget.yaml and /etc/skimmer/dfget.yaml ("supernodes: [10.0.0.1:4980]", keys are the options' names) and in
the environment (SKIMMER_SUPERNODES, SKIMMER_LIMIT, …); options count first, then the environment, then your file, then the system's.
Sizes: 20MiB, 20MB, 20M (MiB), 20971520. Times: 30s, 1h30m, 90 (seconds). Options of Dragonfly 1 and 2 that mean nothing here are passed over:
--callsystem --clientqueue --console --dfdaemon --log-max-files --ip --port --minrate --transfer-from-dfdaemon --log-level --log-dir --log-to-stdout.

--json prints {url, output, bytes, seconds, bytesPerSecond, route, received: {local, peer, supernode, source}, digest?, contentType?, resumedBytes?},
or {url, error: {code, message}, exitCode}; with --recursive {url, output, files: [those], failed, bytes, seconds, bytesPerSecond, received}.

${EXIT_CODE_HELP}`
