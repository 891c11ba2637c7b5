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
	switch len(s) {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("%g%s", s[0], unit)
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
	sign     string // "≤" or "≥"
	value    float64
	absolute bool
}

func atMost(v float64) limit     { return limit{sign: "≤", value: v} }
func atLeast(v float64) limit    { return limit{sign: "≥", value: v} }
func itselfMost(v float64) limit { return limit{sign: "≤", value: v, absolute: true} }

func (l limit) format(unit string) string {
	if l.sign == "" {
		return "recorded"
	}
	if !l.absolute {
		unit = ""
	}
	return fmt.Sprintf("%s %g%s", l.sign, l.value, unit)
}

// met says whether a row is as wanted: its median is.
func (r row) met() string {
	judged := r.ours.over(r.reference)
	if r.want.absolute {
		judged = r.ours
	}
	if len(judged) == 0 || r.want.sign == "" {
		return ""
	}
	v := judged.median()
	if r.want.sign == "≤" && v > r.want.value || r.want.sign == "≥" && v < r.want.value {
		return "**no**"
	}
	return "yes"
}

const preamble = `# Benchmarks

Made by %[1]s on %s: Linux %s, %d cores, %s, load average %s at the start.

How to run it, as root, on a machine that is otherwise idle:

    make bench                     # installs what it compares with; ten minutes; writes this file
    go run ./bench -quick          # two minutes, to see that it runs
    go run ./bench -only attach    # one part

How to read it:

- The two sides of a row take turns, round by round, on hosts of their own, which are network namespaces. A figure is
  the median of the rounds, with the quartiles in brackets. A ratio is Berth's figure over the reference of the same
  round; its median is what is judged. Where machines are shared, read ratios, not milliseconds.
- "bare netlink" is the floor: a program that makes the same kernel objects (veth pair, bridge port, addresses, routes,
  one element in a map per family) over open sockets, and neither looks, locks nor writes anything down.
- The stores are on a tmpfs, where one of them always is; no step that is measured here writes to the other.
- A process is what a user types, from fork to exit.
- A container is of a small static program. Berth, the bare sequence and Podman use the same runtime, and the bare
  sequence Berth's own config.json; it is conmon and the runtime, started by a loop that writes nothing down.
- Between two rounds of containers the kernel has a quarter of a second to take apart what was removed: who makes a
  network namespace meanwhile waits for it.
- New connections are opened one after the other, accepted, closed and reset; nothing is pinned to a processor.
- br_netfilter hands bridged packets to the firewall. Where the kernel has it, inside a network is measured with it and
  without: with it, the reference is still a bridge without any rule.

| what / beside what | Berth | reference | ratio | wanted | met |
|---|---|---|---|---|---|
`

// loadAverage is how busy the machine was in the last minute.
func loadAverage() string {
	load, _, _ := strings.Cut(string(must(os.ReadFile("/proc/loadavg"))), " ")
	return load
}

func render(rows []row, load string) string {
	how := "`make bench`"
	if *quick || *only != "" {
		how = "a part of the rounds (not to be believed)"
	}
	release := strings.TrimSpace(string(must(os.ReadFile("/proc/sys/kernel/osrelease"))))
	var b strings.Builder
	fmt.Fprintf(&b, preamble, how, time.Now().UTC().Format("2006-01-02"), release, runtime.NumCPU(), runtime.Version(), load)
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
