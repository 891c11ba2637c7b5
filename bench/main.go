// Command bench measures what Berth costs, beside the kernel's own floor and
// other tools, on the same work in the same run, and writes a table.
//
// Every figure is a median of interleaved rounds with the quartiles; every
// claim is a ratio. It runs in namespaces of its own and leaves nothing.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	quick    = flag.Bool("quick", false, "few rounds: to see that it runs, not to be believed")
	out      = flag.String("o", "", "write the table to this file as well")
	only     = flag.String("only", "", "only the parts whose names contain this")
	inside   = flag.Bool("inside", false, "")
	berthBin = flag.String("berth", "", "")
)

// A row is one comparison.
type row struct {
	what, ours, reference, ratio, wanted, met string
}

// parts are measured in this order.
var parts = []struct {
	name string
	run  func() []row
}{
	{"attach", attach},
	{"process", process},
	{"detach", detach},
	{"ports", manyPorts},
	{"path", dataPath},
	{"conntrack", conntrack},
}

func main() {
	flag.Parse()
	if !*inside {
		os.Exit(isolate())
	}
	check(unix.Mount("", "/", "none", unix.MS_PRIVATE|unix.MS_REC, ""))
	check(unix.Mount("tmpfs", "/run", "tmpfs", 0, ""))
	_ = unix.Mount("sysfs", "/sys", "sysfs", 0, "")
	var rows []row
	for _, p := range parts {
		if strings.Contains(p.name, *only) {
			start := time.Now()
			rows = append(rows, p.run()...)
			fmt.Fprintf(os.Stderr, "%s: %.0f s\n", p.name, time.Since(start).Seconds())
		}
	}
	text := render(rows)
	fmt.Print(text)
	if *out != "" {
		check(os.WriteFile(*out, []byte(text), 0o644))
	}
}

// isolate builds the program and starts this one again in namespaces of its
// own.
func isolate() int {
	dir, err := os.MkdirTemp("", "berth-bench-")
	check(err)
	defer os.RemoveAll(dir)
	bin := dir + "/berth"
	if b, err := exec.Command("go", "build", "-trimpath", "-o", bin, "berth/cmd/berth").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build berth: %v: %s", err, b)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", append([]string{"-inside", "-berth", bin}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// rounds is n, or few when only trying.
func rounds(n int) int {
	if *quick {
		return max(3, n/10)
	}
	return n
}

// A sample is a set of measurements of one thing.
type sample []float64

func (s *sample) add(d time.Duration) { *s = append(*s, float64(d)/float64(time.Millisecond)) }

func (s *sample) timed(fn func()) {
	start := time.Now()
	fn()
	s.add(time.Since(start))
}

func (s sample) at(q float64) float64 {
	c := slices.Sorted(slices.Values(s))
	return c[int(q*float64(len(c)-1)+0.5)]
}

func (s sample) median() float64 { return s.at(0.5) }

func (s sample) ms() string {
	return fmt.Sprintf("%.2f ms [%.2f–%.2f]", s.median(), s.at(0.25), s.at(0.75))
}

// ratio is that of medians, with the spread of the ratios of pairs.
func ratio(a, b sample) string {
	var pairs sample
	for i := range min(len(a), len(b)) {
		pairs = append(pairs, a[i]/b[i])
	}
	return fmt.Sprintf("%.2f [%.2f–%.2f]", a.median()/b.median(), pairs.at(0.25), pairs.at(0.75))
}

func compare(what string, ours, reference sample, wanted string, met bool) row {
	return row{what, ours.ms(), reference.ms(), ratio(ours, reference), wanted, yes(met)}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "**no**"
}

func render(rows []row) string {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	cpus := strings.Count(string(must(os.ReadFile("/proc/cpuinfo"))), "processor\t")
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmarks\n\nMade by `make bench` on %s, Linux %s, %d cores. Medians of interleaved rounds, with quartiles in\nbrackets; a ratio is ours over the reference of the same run. The machine is a shared virtual one: read ratios, not\nmilliseconds.\n\n", time.Now().UTC().Format("2006-01-02"), strings.TrimSpace(string(release)), cpus)
	b.WriteString("| what | Berth | reference | ratio | wanted | met |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.what, r.ours, r.reference, r.ratio, r.wanted, r.met)
	}
	return b.String()
}

func must[T any](v T, err error) T {
	check(err)
	return v
}
