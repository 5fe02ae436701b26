// Draws a Plotly figure with the plotly.js that NiceGUI brings. Figures come light; in the dark their colours are
// exchanged here, so that a change of theme asks the server nothing.
export default {
  template: '<div class="figure" role="img" :aria-label="label" :style="{ height: height + \'px\' }"></div>',
  props: { figure: String, colours: Object, label: String, height: Number },
  async mounted() {
    const { Plotly } = await import("nicegui-plotly");
    this.plotly = Plotly;
    this.draw();
    this.themes = new MutationObserver(() => this.isDark() !== this.drawnDark && this.draw());
    this.themes.observe(document.body, { attributes: true, attributeFilter: ["class"] });
    this.sizes = new ResizeObserver(() => this.$el.clientWidth && this.plotly.Plots.resize(this.$el));
    this.sizes.observe(this.$el);
  },
  unmounted() {
    this.themes?.disconnect();
    this.sizes?.disconnect();
    this.plotly?.purge(this.$el);
  },
  watch: {
    figure() {
      this.draw();
    },
  },
  methods: {
    isDark() {
      return document.body.classList.contains("body--dark");
    },
    draw() {
      if (!this.plotly || !this.figure) return;
      this.drawnDark = this.isDark();
      const figure = this.coloured(JSON.parse(this.figure));
      const layout = { ...figure.layout, autosize: true };
      delete layout.width;
      layout.height = this.height;
      this.plotly.react(this.$el, figure.data, layout, {
        responsive: false, displaylogo: false, displayModeBar: false, showSendToCloud: false, ...figure.config,
      });
    },
    coloured(value) {
      if (!this.drawnDark) return value;
      if (typeof value === "string") return this.colours[value] ?? value;
      if (Array.isArray(value)) return value.length > 500 ? value : value.map((each) => this.coloured(each));
      if (value && typeof value === "object")
        return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, this.coloured(each)]));
      return value;
    },
  },
};
