#!/bin/sh
# evaluate.sh MODEL HOLDOUT OUT: the loss is the mean relative error of the column means, on held-out rows.
awk -F, '
    FNR == 1 { file++; columns = NF; next }
    { rows[file]++; for (k = 1; k <= NF; k++) sum[file, k] += $k }
    END {
        for (k = 1; k <= columns; k++) {
            ratio = sum[1, k] / rows[1] / (sum[2, k] / rows[2])
            loss += (ratio > 1 ? ratio - 1 : 1 - ratio) / columns
        }
        printf "{\"loss\": %.10g}\n", loss
    }' "$1/rows.csv" "$2" > "$3"
