"""What the prediction log says about the data and the model: drift, data quality, live quality, reports."""
