"""A local HTTP server with configurable faults, and a fake of the Hub."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse


def archive(content):
  """Returns content with the end of an .npz file, which downloads check."""
  return content + b'PK\5\6' + bytes(18)


class Server:
  """Serves `files`, {path: bytes}, like Google Cloud Storage.

  `faults[path]` is a list of faults. Each request removes the first fault:

  - an int: answers with this status.
  - ('cut', n): breaks the connection after n bytes.
  - ('pause', n, event): waits for the event after n bytes.
  - ('silent', event, status): answers only after the event.
  - ('chunked', n): sends chunks, and stops after n bytes; None: sends all.
  - ('headers', {…}): replaces headers; the value None removes a header.
  - ('part', n, size): sends at most n bytes of a range; states this total size.
  - ('redirect', URL): answers with a redirect to the URL.
  - ('web page',): sends the file as HTML.
  - ('no range',): ignores the requested range.
  """

  def __init__(self):
    self.files = {}
    self.faults = {}
    self.requests = []  # [(method, path, headers)]
    self.extra = {}  # {path: more headers}
    server = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'

      def do_GET(self):
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
          server.answer(self)

      do_HEAD = do_GET

      def end_headers(self):
        # Otherwise clients may reuse the connection while it closes.
        self.send_header('Connection', 'close')
        super().end_headers()

      def log_message(self, *args):
        pass

    self._http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self._http.daemon_threads = True
    self.url = f'http://127.0.0.1:{self._http.server_port}'
    threading.Thread(
      target=self._http.serve_forever, args=(0.05,), daemon=True
    ).start()

  def close(self):
    self._http.shutdown()
    self._http.server_close()

  def content(self, path):
    """Returns the bytes at a path, or None."""
    return self.files.get(path)

  def ranges(self, path):
    """Returns the Range header of every GET request for a path."""
    return [
      headers.get('Range')
      for method, asked, headers in self.requests
      if asked == path and method == 'GET'
    ]

  def answer(self, handler):
    path = urllib.parse.unquote(handler.path)
    self.requests.append((handler.command, path, dict(handler.headers)))
    faults = self.faults.get(path, [])
    fault = faults.pop(0) if faults else ('none',)
    content = self.content(path)
    if content is None:
      fault = 404
    if isinstance(fault, int):
      return reply(handler, fault, {})
    kind, *details = fault
    if kind == 'redirect':
      return reply(handler, 302, {'Location': details[0]})
    if kind == 'silent':
      details[0].wait()
      return reply(handler, details[1], {})
    start = self._start(handler, content) if kind != 'no range' else 0
    if start >= len(content) > 0:
      return reply(handler, 416, {'Content-Range': f'bytes */{len(content)}'})
    headers = {
      'ETag': etag(content),
      'Content-Type': 'application/octet-stream',
      'Content-Length': str(len(content) - start),
      **self.extra.get(path, {}),
    }
    if kind == 'chunked':
      headers.update({'Content-Length': None, 'Transfer-Encoding': 'chunked'})
    if kind == 'headers':
      headers.update(details[0])
    if kind == 'web page':
      headers['Content-Type'] = 'text/html; charset=utf-8'
    body, size = content[start:], len(content)
    if start and kind == 'part':
      body, size = body[: details[0]], details[1]
      headers['Content-Length'] = str(len(body))
    if start:
      headers['Content-Range'] = f'bytes {start}-{start + len(body) - 1}/{size}'
    handler.send_response(206 if start else 200)
    for name, value in headers.items():
      if value is not None:
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command == 'HEAD':
      return None
    if kind == 'chunked':
      part = body[: details[0]]
      end = b'0\r\n\r\n' if part == body else b''
      return handler.wfile.write(b'%x\r\n%b\r\n%b' % (len(part), part, end))
    if kind in ('cut', 'pause'):
      handler.wfile.write(body[: details[0]])
      handler.wfile.flush()
      if kind == 'cut':
        return None
      details[1].wait()
      body = body[details[0] :]
    return handler.wfile.write(body)

  def _start(self, handler, content):
    """Returns the start of the requested range; 0 without a range."""
    match = re.fullmatch(r'bytes=(\d+)-', handler.headers.get('Range', ''))
    condition = handler.headers.get('If-Range', etag(content))
    return int(match.group(1)) if match and condition == etag(content) else 0


class Hub(Server):
  """Serves `repositories`, {name: {file: bytes}}, like Hugging Face.

  Files of more than 1000 bytes are served as from the Hub's large storage: with
  a redirect, and with their SHA-256 as ETag. `private` repositories need the
  token 'secret'. `pushed` contains files that were pushed to the branch `main`
  of all repositories after the branch was listed. COMMIT does not contain these
  files.
  """

  COMMIT = 'c0ffee' + 34 * '0'

  def __init__(self):
    super().__init__()
    self.repositories = {}
    self.private = set()
    self.pushed = {}

  def answer(self, handler):
    path = urllib.parse.unquote(handler.path).partition('?')[0]
    match = re.fullmatch(
      r'/api/models/([^/]+/[^/]+)(?:/revision/(.+))?'
      r'|/([^/]+/[^/]+)/resolve/([^/]+)/(.+)',
      path,
    )
    if not match:
      return super().answer(handler)  # For /storage/SHA256.
    self.requests.append((handler.command, path, dict(handler.headers)))
    name = match.group(1) or match.group(3)
    allowed = (
      name not in self.private
      or handler.headers.get('Authorization') == 'Bearer secret'
    )
    files = self.repositories.get(name)
    if files is None or not allowed:
      return reply(handler, 401, {'X-Error-Code': 'RepoNotFound'})
    revision = match.group(2) or match.group(4) or 'main'
    if revision not in ('main', 'v1', self.COMMIT):
      return reply(handler, 404, {'X-Error-Code': 'RevisionNotFound'})
    if match.group(1):
      return reply(
        handler,
        200,
        {'Content-Type': 'application/json'},
        json.dumps(
          {
            'id': name,
            'modelId': name,
            'sha': self.COMMIT,
            'siblings': [
              {'rfilename': file, 'size': len(content), **_lfs(content)}
              for file, content in files.items()
            ],
          }
        ).encode(),
      )
    if revision == 'main':
      files = {**files, **self.pushed}
    content = files.get(match.group(5))
    if content is None:
      return reply(handler, 404, {'X-Error-Code': 'EntryNotFound'})
    headers = {'X-Repo-Commit': self.COMMIT}
    if len(content) <= 1000:
      return reply(
        handler,
        200,
        {**headers, 'ETag': f'"{hashlib.sha1(content).hexdigest()}"'},
        content,
      )
    digest = sha256(content)
    # The other host is this server with another name.
    elsewhere = self.url.replace('127.0.0.1', 'localhost')
    self.files.setdefault(f'/storage/{digest}', content)
    return reply(
      handler,
      302,
      {
        **headers,
        'Location': f'{elsewhere}/storage/{digest}',
        'X-Linked-Etag': f'"{digest}"',
        'X-Linked-Size': str(len(content)),
      },
    )


def _lfs(content):
  """Returns the Hub's metadata of a file in its large storage."""
  if len(content) <= 1000:
    return {}
  pointer = {'sha256': sha256(content), 'size': len(content)}
  return {'lfs': {**pointer, 'pointerSize': 134}}


def reply(handler, status, headers, body=b''):
  """Answers a request with a status, headers and a body."""
  handler.send_response(status)
  for name, value in {**headers, 'Content-Length': str(len(body))}.items():
    handler.send_header(name, value)
  handler.end_headers()
  if handler.command != 'HEAD':
    handler.wfile.write(body)


def etag(content):
  return f'"{hashlib.md5(content).hexdigest()}"'


def sha256(content):
  return hashlib.sha256(content).hexdigest()


def wait_until(condition):
  """Returns when `condition()` is true."""
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)
