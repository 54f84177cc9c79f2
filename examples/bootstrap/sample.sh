#!/bin/sh
# sample.sh MODEL N OUT SEED NOISE: N rows of the training data, drawn with replacement, each number times 1 + NOISE u.
awk -F, -v n="$2" -v seed="$4" -v noise="$5" '
    NR == 1 { print; columns = NF; next }
    { rows[++count] = $0 }
    END {
        srand(seed)
        for (i = 0; i < n; i++) {
            split(rows[int(rand() * count) + 1], cells, ",")
            for (k = 1; k <= columns; k++)
                printf "%.10g%s", cells[k] * (1 + noise * (2 * rand() - 1)), k < columns ? "," : "\n"
        }
    }' "$1/rows.csv" > "$3"
