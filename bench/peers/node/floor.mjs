// The floor: what a token costs on node's own http server with jose and nothing else. One client, no store,
// no limits, no audit. Nobody would run it; nothing written in node that does more can be cheaper.
import { createHash, randomUUID, timingSafeEqual } from 'node:crypto';
import { createServer } from 'node:http';
import { SignJWT, generateKeyPair } from 'jose';

const port = Number(process.argv[2]);
const issuer = `http://127.0.0.1:${port}`;
const { privateKey } = await generateKeyPair('RS256');
const kid = randomUUID();
const digest = (secret) => createHash('sha256').update(secret).digest();
const clients = new Map([['bench', digest('bench-secret')]]);

const read = (request) => new Promise((resolve, reject) => {
  let text = '';
  request.setEncoding('utf8').on('data', (chunk) => { text += chunk; });
  request.on('end', () => resolve(JSON.parse(text))).on('error', reject);
});

function answer(response, status, body) {
  const text = JSON.stringify(body);
  response.writeHead(status, {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(text),
    'cache-control': 'no-store',
  });
  response.end(text);
}

createServer(async (request, response) => {
  if (request.method !== 'POST' || request.url !== '/token') {
    return answer(response, 404, { error: 'not_found' });
  }
  const { clientId, secret } = await read(request);
  const known = clients.get(clientId);
  if (!known || !timingSafeEqual(known, digest(secret))) {
    return answer(response, 401, { error: 'invalid_client' });
  }
  const accessToken = await new SignJWT({ client_id: clientId, scope: 'read' })
    .setProtectedHeader({ alg: 'RS256', typ: 'at+jwt', kid })
    .setIssuer(issuer)
    .setSubject(clientId)
    .setAudience('https://api.example.com')
    .setIssuedAt()
    .setExpirationTime('24h')
    .setJti(randomUUID())
    .sign(privateKey);
  answer(response, 200, { accessToken, tokenType: 'Bearer', expiresIn: 86400 });
}).listen(port, '127.0.0.1');
