package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// A sample is a set of measurements of one thing.
type sample []float64

func (s *sample) add(v float64) { *s = append(*s, v) }

// timed adds how long fn takes, in ms.
func (s *sample) timed(fn func()) { s.shared(1, fn) }

// shared adds how long fn takes for each of n things, in ms.
func (s *sample) shared(n int, fn func()) {
	start := time.Now()
	fn()
	s.add(float64(time.Since(start)) / float64(time.Millisecond) / float64(n))
}

// at is a quantile, between two measurements if need be.
func (s sample) at(q float64) float64 {
	c := slices.Sorted(slices.Values(s))
	x := q * float64(len(c)-1)
	i := int(x)
	if i+1 == len(c) {
		return c[i]
	}
	return c[i] + (x-float64(i))*(c[i+1]-c[i])
}

func (s sample) median() float64 { return s.at(0.5) }

// over is s by t, round by round.
func (s sample) over(t sample) sample {
	var r sample
	for i := range min(len(s), len(t)) {
		r.add(s[i] / t[i])
	}
	return r
}

func (s sample) format(unit string) string {
	if len(s) == 0 {
		return ""
	}
	n := 2
	if s.median() >= 100 {
		n = 0
	} else if s.median() >= 10 {
		n = 1
	}
	return fmt.Sprintf("%.*f%s [%.*f–%.*f]", n, s.median(), unit, n, s.at(0.25), n, s.at(0.75))
}

// A row is one line of the table.
type row struct {
	what            string
	ours, reference sample // taken round by round together; reference may be empty
	unit            string
	want            limit
	note            string // stands for the reference where it was not measured
}

// A limit is what is wanted of a ratio, or of our figure itself. The zero value
// is a figure that is recorded only.
type limit struct {
	most, least float64
	absolute    bool
}

func atMost(v float64) limit     { return limit{most: v} }
func atLeast(v float64) limit    { return limit{least: v} }
func itselfMost(v float64) limit { return limit{most: v, absolute: true} }

func (l limit) format(unit string) string {
	if !l.absolute {
		unit = ""
	}
	switch {
	case l.most > 0:
		return fmt.Sprintf("≤ %g%s", l.most, unit)
	case l.least > 0:
		return fmt.Sprintf("≥ %g", l.least)
	}
	return "recorded"
}

// met says whether a row is as wanted: its median is.
func (r row) met() string {
	ratio := r.ours.over(r.reference)
	if r.want.absolute {
		ratio = r.ours
	}
	switch {
	case len(ratio) == 0 || r.want == (limit{}):
		return ""
	case r.want.most > 0 && ratio.median() > r.want.most, r.want.least > 0 && ratio.median() < r.want.least:
		return "**no**"
	}
	return "yes"
}

const preamble = `# Benchmarks

Made by %[1]s on %s: Linux %s, %d cores, %s.

How to run it, as root, on a machine that is otherwise idle:

    make bench                     # installs what it compares with; ten minutes; writes this file
    go run ./bench -quick          # one minute, to see that it runs
    go run ./bench -only attach    # one part

How to read it:

- The two sides of a row take turns, round by round, on hosts of their own, which are network namespaces. A figure is
  the median of the rounds, with the quartiles in brackets. A ratio is Berth's figure over the reference of the same
  round; its median is what is judged. Where machines are shared, read ratios, not milliseconds.
- "bare netlink" is the floor: a program that makes the same kernel objects (veth pair, bridge port, addresses, routes,
  one element in a map per family) over open sockets, and neither looks, locks nor writes anything down.
- The stores are on a tmpfs, where one of them always is; no step that is measured here writes to the other.
- A process is what a user types, from fork to exit.
- New connections are opened and reset one after the other; nothing is pinned to a processor.
- br_netfilter hands bridged packets to the firewall. Where the kernel has it, inside a network is measured with it and
  without: with it, the reference is still a bridge without any rule.

| what / beside what | Berth | reference | ratio | wanted | met |
|---|---|---|---|---|---|
`

func render(rows []row) string {
	how := "`make bench`"
	if *quick || *only != "" {
		how = "a part of the rounds (not to be believed)"
	}
	release := strings.TrimSpace(string(must(os.ReadFile("/proc/sys/kernel/osrelease"))))
	var b strings.Builder
	fmt.Fprintf(&b, preamble, how, time.Now().UTC().Format("2006-01-02"), release, runtime.NumCPU(), runtime.Version())
	for _, r := range rows {
		reference := r.reference.format(r.unit)
		if reference == "" {
			reference = r.note
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.what, r.ours.format(r.unit), reference,
			r.ours.over(r.reference).format(""), r.want.format(r.unit), r.met())
	}
	return b.String()
}
