package cli

import (
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"
)

// sizeWords are Docker's: 64m, 64MB, 64MiB and 1.5g, all powers of 1024.
var sizeWords = regexp.MustCompile(`(?i)^([0-9]+(?:\.[0-9]+)?) ?([kmgtp]?)i?b?$`)

// parseSize reads a number of bytes.
func parseSize(s string) (int64, error) {
	m := sizeWords.FindStringSubmatch(s)
	if m == nil || len(m[1]) > 40 {
		return 0, fmt.Errorf("%s: a size is wanted, as 64m or 1.5g", quoted(s))
	}
	n, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return 0, fmt.Errorf("%s: a size is wanted, as 64m or 1.5g", quoted(s))
	}
	if m[2] != "" {
		power := strings.Index("kmgtp", strings.ToLower(m[2])) + 1
		n.Mul(n, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), uint(10*power))))
	}
	bytes := new(big.Int).Quo(n.Num(), n.Denom())
	if !bytes.IsInt64() {
		return 0, fmt.Errorf("%s: no machine has that much", quoted(s))
	}
	return bytes.Int64(), nil
}

// parseCPUs reads a number of processors, in billionths.
func parseCPUs(s string) (int64, error) {
	n, ok := new(big.Rat), false
	if len(s) <= 40 && strings.Trim(s, "0123456789.") == "" {
		_, ok = n.SetString(s)
	}
	n.Mul(n, big.NewRat(1e9, 1))
	switch {
	case !ok:
		return 0, fmt.Errorf("%s: a number of processors is wanted, as 1.5", quoted(s))
	case !n.IsInt() || !n.Num().IsInt64():
		return 0, fmt.Errorf("%s: a billionth of a processor is the finest, and %d the most", quoted(s), int64(1<<63-1)/1e9)
	}
	return n.Num().Int64(), nil
}

// quoted quotes what was typed, cut so that an error stays one line.
func quoted(s string) string {
	const most = 60
	if len(s) <= most {
		return strconv.Quote(s)
	}
	return strconv.Quote(strings.ToValidUTF8(s[:most], "")) + "…"
}
