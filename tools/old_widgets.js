// An extension of JupyterLab, in the form in which it loads prebuilt ones: lets its widget manager, which knows only
// ipywidgets 8, show the widgets of a kernel with Colab's versions. Models of ipywidgets 7 ask for base 1.2 and get base
// 2.0, which holds the same classes; those of anywidget 0.9.21 get its own script, copied here as anywidget.js.
(window._JUPYTERLAB ||= {})["nbkit-old-widgets"] = (() => {
  const here = document.currentScript.src;
  let shared;
  const load = async (name) => (await Object.values(shared[name])[0].get())();
  const plugin = async () => {
    const base = await load("@jupyter-widgets/base");
    const script = await (await fetch(new URL("anywidget.js", here))).text();
    let anywidget;
    new Function("define", script)((_, make) => { anywidget = make(base); });
    return {
      id: "nbkit-old-widgets:plugin",
      autoStart: true,
      requires: [base.IJupyterWidgetRegistry],
      activate: (_, registry) => {
        registry.registerWidget({ name: "@jupyter-widgets/base", version: "1.2.0", exports: base });
        registry.registerWidget({ name: "anywidget", version: "0.9.21", exports: anywidget });
      },
    };
  };
  return {
    init: (scope) => { shared = scope; },
    get: async () => { const made = await plugin(); return () => ({ __esModule: true, default: made }); },
  };
})();
