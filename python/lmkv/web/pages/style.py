"""Colours, figures and sizes of all pages, and the little that runs in the browser."""

from __future__ import annotations

STYLE = """
body.body--light { --ink:#1c2733; --soft:#596675; --line:#d6dde4; --panel:#fff; --page:#f3f5f7;
  --link:#0b5cad; --bad:#b3261e; --badpage:#fdecea; --good:#1e7b4d; --warn:#8a5a00 }
body.body--dark { --ink:#e4e9ee; --soft:#9aa7b4; --line:#303a45; --panel:#1a2129; --page:#11161b;
  --link:#7cb8f2; --bad:#ff8a80; --badpage:#40191a; --good:#6fcf97; --warn:#f0b95b }
body { background:var(--page); color:var(--ink);
  font:14px/1.45 system-ui,"Segoe UI","DejaVu Sans",sans-serif; font-variant-numeric:tabular-nums }
.nicegui-content { padding:0; gap:0; align-items:stretch; width:100% }
a { color:var(--link); text-decoration:none } a:hover { text-decoration:underline }
:focus-visible { outline:2px solid var(--link); outline-offset:2px }
h1 { font-size:18px; font-weight:600; margin:0; line-height:1.4 }
.bare { display:contents }
h2 { font-size:14px; font-weight:600; margin:0 0 8px; line-height:1.4; color:var(--soft) }
.unseen { position:absolute; width:1px; height:1px; overflow:hidden; clip-path:inset(50%) }
.top { display:flex; align-items:center; gap:20px; padding:8px 20px; background:var(--panel);
  border-bottom:1px solid var(--line); flex-wrap:wrap }
.top b { font-size:16px } .top nav { display:flex; gap:16px; flex:1 }
.top nav a[aria-current] { color:var(--ink); font-weight:600;
  box-shadow:0 2px 0 var(--link) }
.top button, .plain { font:inherit; color:var(--ink); background:none; border:1px solid var(--line);
  border-radius:4px; padding:3px 10px; cursor:pointer }
.banner { background:var(--badpage); color:var(--bad); padding:8px 20px; font-weight:600 }
.main { padding:16px 20px; display:flex; flex-direction:column; gap:14px; max-width:1600px;
  width:100%; margin:0 auto; box-sizing:border-box }
.kiosk .top { display:none } .kiosk .main { max-width:none } .kiosk .figure b { font-size:34px }
.bar { border-radius:6px; padding:8px 14px; border:1px solid var(--line); background:var(--panel);
  color:var(--good) }
.bar.bad { background:var(--badpage); color:var(--bad); border-color:var(--bad); font-weight:600 }
.figures { display:grid; grid-template-columns:repeat(auto-fit,minmax(140px,1fr)); gap:12px }
.figure, .panel { background:var(--panel); border:1px solid var(--line); border-radius:6px;
  padding:12px 14px; min-width:0 }
.figure span { display:block; color:var(--soft) }
.figure b { font-size:24px; font-weight:600; line-height:1.3; white-space:nowrap }
.figure small { color:var(--soft); font-size:12px; display:block; min-height:17px }
.split { display:grid; grid-template-columns:3fr 2fr; gap:14px }
@media (max-width:900px) { .split { grid-template-columns:1fr } }
.scroll { overflow-x:auto; position:relative }
table { border-collapse:collapse; width:100% }
th { text-align:left; font-weight:600; color:var(--soft); white-space:nowrap }
th, td { padding:4px 14px 4px 0; border-bottom:1px solid var(--line); vertical-align:top }
.n { text-align:right; white-space:nowrap } .w { white-space:nowrap } .rest { width:100% }
td.none { color:var(--soft); padding:18px 0; text-align:center }
.state { font-weight:600 } .state.live { color:var(--good) }
.state.suspect, .state.syncing { color:var(--warn) }
.state.dead, .state.incompatible, .state.failed { color:var(--bad) }
.state.done { color:var(--good) } .state.cancelled, .state.queued { color:var(--soft) }
.progress { display:inline-block; width:120px; height:10px; border-radius:5px; overflow:hidden;
  background:var(--line); margin-right:8px } .progress i { display:block; height:100%;
  background:#2aa198 }
.small { padding:0 8px } .why { color:var(--bad); white-space:normal; min-width:18em;
  max-width:34em } .panel small { color:var(--soft) }
.amount, .what a { white-space:nowrap } .what { min-width:15em }
.act { background:var(--panel); color:var(--ink); border:1px solid var(--line); border-radius:6px;
  padding:16px 18px; width:720px; max-width:94vw !important; display:flex; flex-direction:column;
  gap:12px } .act h2 { font-size:16px; color:var(--ink); margin:0 } .act p { margin:0 }
.act .why:empty { display:none } .copied { margin-bottom:14px } .act .copied { margin-bottom:8px }
.copied .name { width:9em; color:var(--soft) }
.act .q-field { min-width:15em }
button.plain:disabled { opacity:.5; cursor:default } .plain.danger { color:var(--bad);
  border-color:var(--bad) }
dl { display:grid; grid-template-columns:max-content 1fr; gap:4px 18px; margin:0 }
dt { color:var(--soft) } dd { margin:0; overflow-wrap:anywhere }
.find { display:flex; gap:8px; align-items:center; flex-wrap:wrap }
.find > input { font:inherit; color:var(--ink); background:var(--panel);
  border:1px solid var(--line); border-radius:4px; padding:4px 8px; min-width:26em }
.find a[aria-current] { color:var(--ink); font-weight:600 }
.fields { margin-top:12px } .q-option-group { margin:0 0 10px -6px }
.pager { display:flex; gap:16px; align-items:center; margin-top:10px; min-height:24px }
.pool { display:flex; height:18px; border-radius:4px; overflow:hidden; background:var(--line);
  margin-bottom:10px } .pool i { display:block; height:100% }
.strip { display:flex; flex-wrap:wrap; gap:2px } .strip i { width:14px; height:18px;
  border-radius:2px; background:var(--c) }
.key { display:inline-flex; gap:6px; align-items:center; margin-right:14px; color:var(--soft) }
.key i { width:12px; height:12px; border-radius:2px; background:var(--c); display:inline-block }
.h0 { --c:#9aa5b1 } .h1 { --c:#e0a13c } .h2 { --c:#5aa9a0 } .h3 { --c:#1f7a8c }
body.body--dark .h0 { --c:#46525e } body.body--dark .h3 { --c:#57c4d8 }
pre.line { font:13px/1.5 ui-monospace,"DejaVu Sans Mono",monospace; background:var(--page);
  border:1px solid var(--line); border-radius:4px; padding:6px 10px; margin:0; overflow-x:auto;
  flex:1; min-width:0 }
.nicegui-echart svg text { fill:var(--ink) !important; stroke:none !important }
#popup { bottom:auto !important; top:0; left:0 !important; right:0; margin:0 !important;
  padding:8px 20px !important; border-radius:0 !important; flex-direction:row !important;
  background:var(--badpage) !important; color:var(--bad); font-weight:600 }
#popup > span:first-child::before { content:none !important }
.q-field textarea { font:13px/1.5 ui-monospace,"DejaVu Sans Mono",monospace }
.q-field__native, .q-field__label { color:var(--ink) !important }
"""

SCRIPT = """
const lmkvModes = ['system', 'light', 'dark'];
const lmkvMode = () => localStorage.getItem('lmkv-colours') || 'system';
function lmkvShow(button) {
  const mode = lmkvMode();
  Quasar.Dark.set(mode === 'system' ? 'auto' : mode === 'dark');
  if (button) button.textContent = 'Colours: ' + mode;
}
function lmkvNext(button) {
  const next = lmkvModes[(lmkvModes.indexOf(lmkvMode()) + 1) % 3];
  localStorage.setItem('lmkv-colours', next);
  lmkvShow(button);
}
function lmkvCopy(button) {
  const line = button.parentElement.querySelector('pre');
  const range = document.createRange();
  range.selectNodeContents(line);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
  document.execCommand('copy');
  button.textContent = 'Copied';
}
const lmkvAct = button => emitEvent('lmkv_act', {...button.dataset});
// Half a character, which no text in UTF-8 can have, is none. What is more than one message of the
// socket takes, as JSON in JSON, never sets out.
addEventListener('input', event => {
  const field = event.target, half = /\\p{Surrogate}/gu;
  if (!(field instanceof HTMLTextAreaElement)) return;
  if (half.test(field.value)) field.value = field.value.replace(half, '\ufffd');
  const length = field.value.length;
  if (length < 100000 || JSON.stringify(JSON.stringify(field.value)).length < 950000) return;
  event.stopImmediatePropagation();
  field.value = '';
  field.dispatchEvent(new Event('input'));
  emitEvent('lmkv_act', {long: String(length)});
}, true);
// A table that is drawn anew between press and release swallows the click: it is made up for.
let lmkvPressed = null;
addEventListener('pointerdown', event => {
  lmkvPressed = event.target.closest('.scroll a, .scroll button');
}, true);
addEventListener('pointerup', event => {
  const was = lmkvPressed, now = event.target.closest('.scroll a, .scroll button');
  lmkvPressed = null;
  if (was && now && !was.isConnected && now.outerHTML === was.outerHTML) now.click();
}, true);
function lmkvBegin() {
  const button = document.getElementById('colours');
  if (button && globalThis.Quasar) lmkvShow(button); else setTimeout(lmkvBegin, 20);
}
lmkvBegin();
"""
