# %% [markdown]
# # From your own bars to a verdict
#
# Put your files into a folder and start the service over it:
# `FEATURE_STORE_URL=file:///home/me/bars make serve`. CSV and Parquet of MetaTrader, HistData, Dukascopy, TradingView,
# pandas and others are read as they are. Without a folder the service has a sample of its own, and says so.

# %%
from ml_workbench_client import Workbench

wb = Workbench()  # WORKBENCH_URL and WORKBENCH_API_KEY, if they are set
wb.ready

# %% [markdown]
# ## How your files were read
#
# Rows used and dropped, whose clock, which side of the price: decision by decision. A file that is doubtful says so
# here, before it costs a training.

# %%
data = wb.data
for series in data.series:
    print(series.origin, series.symbol, series.timeframe, f"{series.num_rows:,} bars", series.first, series.last)
    print("   ", *series.notes, *series.warnings, sep="\n    ")
for file in data.ignored:
    print("not read:", file.origin, file.reason)

# %%
bars = next(each for each in data.series if each.timeframe == "1h")
symbol, first, last = bars.symbol, bars.first, bars.last
features = ["return_1", "rsi_14", "volatility_24"]

# %% [markdown]
# ## What a training will see
#
# Features are as they were known at each bar's close; labels are what a decision there would have earned.

# %%
wb.features(symbol, ["close", *features], timeframe="1h", start_date=first, end_date=last).to_polars().tail(5)

# %%
labels = wb.labels(symbol, "price_change_1h", start_date=first, end_date=last)
print(f"{sum(each is not None for each in labels.labels):,} labels; dropped: {labels.num_dropped}")

# %% [markdown]
# ## Train
#
# The linear model is the one to beat. The bar moves while it trains; interrupting the cell ends the bar, not the job.

# %%
job = wb.train(
    name="Own bars, linear",
    model_type="time_series",
    family="linear",
    features=features,
    target="price_change_1h",
    symbols=[symbol],
    start_date=first,
    end_date=last,
    force=True,  # this page may be run twice on the same bars
)
job.progress()

# %%
job

# %% [markdown]
# ## The verdict
#
# On the last part of the data, which nothing was fitted to, beside every baseline. `no_skill` and `insufficient_data`
# are results, not failures. The certificate says whether anything knew the future.

# %%
model = job.model
card = model.card
print(card.evaluation.verdict, "-", card.evaluation.reason)
print(card.evaluation.economic)
model

# %%
for check in card.certificate.checks:
    print(check.model_dump())

# %% [markdown]
# ## What it would have earned
#
# Row by row on the test part: forecast, interval, position, costs, equity. Figures are drawn by the notebook; the
# report is one page with all of them that opens without network (`model.report().save("report.html")`).

# %%
rows = model.series(part="test").to_polars()
rows.select("as_of", "prediction", "realised", "position", "net", "equity").tail(5)

# %%
model.figure("equity")

# %%
model.report()

# %% [markdown]
# ## Ask it
#
# At a moment of the past, and for many moments in one call. A prediction has an interval, a probability for its
# direction, and abstains where it should.

# %%
record = model.predict(as_of=last, enqueue=None)
print(record.direction, record.confidence, record.interval, record.abstain_reasons)

# %%
table = wb.features(symbol, features, timeframe="1h", start_date=first, end_date=last).to_pandas()
answers = model.predict_batch([table[features].iloc[: end + 1].tail(card.lookback) for end in (200, 300, 400)])
[answer.prediction for answer in answers]
