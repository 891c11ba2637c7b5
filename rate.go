package berth

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// A Rate is how much may pass in one direction. The zero Rate is no limit.
type Rate struct {
	Bits uint64 `json:"bits"` // each second; 0: no limit
	// Burst is how many bits may pass at once after a pause; 0: what suits Bits.
	Burst uint64 `json:"burst,omitempty"`
}

// Rates are the limits of an endpoint, seen from its sandbox. The zero Rates
// are none.
type Rates struct {
	In  Rate `json:"in,omitzero"`
	Out Rate `json:"out,omitzero"`
}

// A RateChange says what of an endpoint's Rates changes; nil stays.
type RateChange struct {
	In, Out *uint64 // bits each second; 0 takes a limit away
	Burst   *uint64 // bits, in both directions that have a limit; 0: what suits it
}

// Empty reports whether c changes nothing.
func (c RateChange) Empty() bool { return c == RateChange{} }

// Of returns rates as they are after the change. Its error matches
// [ErrInvalid] for a burst of no limit, and for a limit that is too low.
func (c RateChange) Of(r Rates) (Rates, error) {
	limited := false
	for _, d := range []struct {
		rate *Rate
		to   *uint64
	}{{&r.In, c.In}, {&r.Out, c.Out}} {
		if d.to != nil {
			d.rate.Bits = *d.to
		}
		if d.rate.Bits == 0 {
			*d.rate = Rate{}
			continue
		}
		limited = true
		if c.Burst != nil {
			d.rate.Burst = *c.Burst
		}
	}
	if c.Burst != nil && *c.Burst > 0 && !limited {
		return r, fmt.Errorf("a burst without a rate: %w", ErrInvalid)
	}
	return r, r.Check()
}

// leastRate is the lowest limit, in bits each second: a packet of Ethernet
// takes 12 s, and the kernel's queue counts to 274 s.
const leastRate = 1000

// Check returns an error that matches [ErrInvalid] for a limit that is too low.
func (r Rates) Check() error {
	for _, d := range []Rate{r.In, r.Out} {
		if d.Bits > 0 && d.Bits < leastRate {
			return fmt.Errorf("a rate of %s: 1kbit is the least: %w", FormatRate(d.Bits), ErrInvalid)
		}
	}
	return nil
}

// units of a Rate. Those of a size in bytes are of 1,024, as tc(8) has them.
var units = []struct {
	name string
	bits uint64
}{
	{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}, {"gb", 8 << 30}, {"mb", 8 << 20}, {"kb", 8 << 10}, {"b", 8},
}

// ParseRate reads a rate as tc(8) writes it: "10mbit", "2.5gbit", "64kbit". A
// bare number is bits each second.
func ParseRate(s string) (bits uint64, err error) {
	if bits, err = parseBits(s, "bit"); err != nil {
		return 0, fmt.Errorf("rate %q: bits each second are wanted, as 10mbit: %w", s, ErrInvalid)
	}
	return bits, nil
}

// ParseBurst reads a size as tc(8) writes it, in bytes ("256kb", "1mb") or bits
// ("256kbit"), and returns bits. A bare number is bytes.
func ParseBurst(s string) (bits uint64, err error) {
	if bits, err = parseBits(s, "b"); err != nil {
		return 0, fmt.Errorf("burst %q: a size is wanted, as 256kb: %w", s, ErrInvalid)
	}
	return bits, nil
}

// parseBits reads a number with a unit that ends like bare, or with bit.
func parseBits(s, bare string) (uint64, error) {
	word := strings.ToLower(s)
	number := strings.TrimRight(word, "bgikmt")
	unit := word[len(number):]
	if unit == "" {
		unit = bare
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || strings.ContainsAny(number, "+-einfx_p") {
		return 0, ErrInvalid
	}
	for _, u := range units {
		if u.name != unit || bare == "bit" && !strings.HasSuffix(unit, "bit") {
			continue
		}
		if v *= float64(u.bits); v >= math.MaxInt64 {
			return 0, ErrInvalid
		}
		return uint64(math.Round(v)), nil
	}
	return 0, ErrInvalid
}

// FormatRate writes a rate as [ParseRate] reads it.
func FormatRate(bits uint64) string {
	for _, u := range units[:4] {
		if bits >= u.bits && bits%u.bits == 0 {
			return strconv.FormatUint(bits/u.bits, 10) + u.name
		}
	}
	return strconv.FormatUint(bits, 10) + "bit"
}

// FormatBurst writes a size in bits as [ParseBurst] reads it.
func FormatBurst(bits uint64) string {
	for _, u := range units[5:] {
		if bits >= u.bits && bits%u.bits == 0 {
			return strconv.FormatUint(bits/u.bits, 10) + u.name
		}
	}
	return strconv.FormatUint(bits, 10) + "bit"
}
