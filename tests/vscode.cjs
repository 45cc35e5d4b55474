// Run by vscode.py: what VS Code's Jupyter extension does with an existing server's URL, by the library that it talks with.
// Lines that begin with @ ask for a fault, and wait for the answer.
const { ServerConnection, KernelManager, SessionManager, KernelSpecManager, ContentsManager } = require(require.resolve('@jupyterlab/services', { paths: [process.argv[3]] }));
const readline = require('node:readline');
const url = new URL(process.argv[2]);
const token = url.searchParams.get('token');
const baseUrl = url.origin + url.pathname.replace(/(lab|tree)\/?$/, '');
const serverSettings = ServerConnection.makeSettings({ baseUrl, wsUrl: baseUrl.replace('http', 'ws'), token, appendToken: true });
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const tell = async (word) => { console.log('@' + word); await lines.next(); };
const sleep = (ms) => new Promise((r) => setTimeout(r, ms));
const results = [];
const check = (name, ok, more = '') => { results.push(ok); console.log(ok ? 'ok  ' : 'FAIL', name, more); };
const within = (promise, ms, what) => Promise.race([promise, sleep(ms).then(() => { throw new Error('too late: ' + what); })]);

async function run(kernel, code, { stdin, ms = 60000 } = {}) {
  let text = '', error = '';
  const future = kernel.requestExecute({ code, allow_stdin: Boolean(stdin), stop_on_error: false });
  future.onIOPub = (m) => {
    if (m.header.msg_type === 'stream') text += m.content.text;
    if (m.header.msg_type === 'execute_result') text += m.content.data['text/plain'];
    if (m.header.msg_type === 'error') error = m.content.ename;
  };
  if (stdin) future.onStdin = (m) => kernel.sendInputReply({ status: 'ok', value: stdin }, m.header);
  const reply = await within(future.done, ms, code);
  return { text, error, status: reply.content.status };
}

(async () => {
  const specManager = new KernelSpecManager({ serverSettings });
  const kernelManager = new KernelManager({ serverSettings });
  const sessionManager = new SessionManager({ serverSettings, kernelManager });
  const contents = new ContentsManager({ serverSettings });
  await within(Promise.all([specManager.ready, kernelManager.ready, sessionManager.ready]), 30000, 'managers');
  check('kernel specs', 'python3' in specManager.specs.kernelspecs, Object.keys(specManager.specs.kernelspecs).join());
  const session = await within(sessionManager.startNew({ path: 'vs.ipynb', type: 'notebook', name: 'vs.ipynb', kernel: { name: 'python3' } }), 60000, 'session');
  const kernel = session.kernel;
  const seen = [];
  kernel.connectionStatusChanged.connect((_, status) => seen.push(status));
  const info = await within(kernel.info, 30000, 'info');
  check('kernel info', info.language_info.name === 'python', info.implementation_version);
  check('execute', (await run(kernel, 'x = 41\nprint("a"); x + 1')).text === 'a\n42');
  check('input()', (await run(kernel, 'print(input("name"))', { stdin: 'ana' })).text === 'ana\n');
  await run(kernel, `
def opened(comm, message):
    @comm.on_msg
    def heard(message):
        comm.send({'got': message['content']['data'], 'bytes': sum(len(b) for b in message['buffers'])}, buffers=[b'x' * 100000])
get_ipython().kernel.comm_manager.register_target('t', opened)`);
  const comm = kernel.createComm('t');
  const answer = new Promise((r) => { comm.onMsg = r; });
  await comm.open({}).done;
  comm.send({ hello: 1 }, {}, [new ArrayBuffer(1000)]);
  const message = await within(answer, 20000, 'comm');
  check('comm with buffers', message.content.data.got.hello === 1 && message.content.data.bytes === 1000 && message.buffers[0].byteLength === 100000);
  const sleeping = run(kernel, 'import time\ntime.sleep(60)');
  await sleep(1000);
  await kernel.interrupt();
  check('interrupt', (await within(sleeping, 20000, 'interrupt')).error === 'KeyboardInterrupt');
  const counted = run(kernel, 'for n in range(200):\n    print(n, flush=True)\n    time.sleep(0.05)');
  for (const word of ['cut', 'cut']) { await sleep(1500); await tell(word); }
  await sleep(1000);
  await tell('away');  // the server is away for 4 s
  const during = run(kernel, 'x += 1\nprint(x)');
  await tell('back');
  check('200 lines through two cuts and 4 s away', (await counted).text === [...Array(200).keys()].map((n) => n + '\n').join(''));
  check('a request sent while it is away runs once', (await during).text === '42\n');
  check('the WebSocket stayed', !seen.includes('disconnected') && !seen.includes('connecting'), seen.join());
  await tell('away');
  const interrupted = kernel.interrupt().then(() => 'ok', (e) => String(e));
  await sleep(500);
  await tell('back');
  check('a REST request sent while it is away', (await within(interrupted, 20000, 'rest')) === 'ok', await interrupted);
  const second = sessionManager.connectTo({ model: session.model });
  check('a second client, as after a window reload', (await run(second.kernel, 'x')).text === '42');
  await contents.save('a.txt', { type: 'file', format: 'text', content: 'hello' });
  check('contents', (await contents.get('a.txt')).content === 'hello');
  await within(kernel.reconnect(), 20000, 'reconnect');
  check('reconnect', (await run(kernel, 'x')).text === '42');
  await within(kernel.restart(), 30000, 'restart');
  check('restart', (await run(kernel, "'x' in dir()")).text === 'False');
  await tell('cut');
  check('after a restart and a cut', (await run(kernel, '1 + 1')).text === '2');
  await within(session.shutdown(), 20000, 'shutdown');
  await sessionManager.refreshRunning();
  check('shutdown', [...sessionManager.running()].length === 0);
  console.log(results.every(Boolean) ? 'ALL' : 'SOME FAILED', results.length);
  process.exit(results.every(Boolean) ? 0 : 1);
})().catch((e) => { console.log('FAIL', e.stack || e); process.exit(2); });
