// Command bench measures what Berth costs, beside the kernel's own floor and
// other tools, on the same work in the same run, and writes a table.
//
// The two sides of a comparison take turns, round by round; every figure is a
// median with its quartiles and every claim a ratio. It runs in namespaces of
// its own and leaves nothing. It judges nothing: a figure that is not met does
// not fail the run.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

var (
	quick   = flag.Bool("quick", false, "few rounds: to see that it runs, not to be believed")
	out     = flag.String("o", "", "write the table to this `file` as well")
	only    = flag.String("only", "", "only the parts whose names contain this `text`: attach, process, ports, path, conntrack, container, podman, images, cni")
	program = flag.String("berth", "", "the berth program, a `file` beside berth-cni; they are built, if none is given")
	inside  = flag.Bool("inside", false, "for itself: it is in its own namespaces, and files 3 and 4 are the programs")
)

// Where the programs lie on the private /run.
const (
	berthBin  = "/run/berth-under-test"
	pluginBin = "/run/plugin-under-test"
)

var ctx = context.Background()

// parts are in the order of the table. The first is measured after all others but
// the last: both leave hundreds of namespaces, and what the kernel looks up by
// path gets slower by them.
var parts = []struct {
	name string
	run  func() []row
}{
	{"attach", attach},
	{"process", process},
	{"ports", manyPorts},
	{"path", dataPath},
	{"conntrack", connections},
	{"container", containers},
	{"podman", beside},
	{"images", images},
	{"cni", plugin},
}

func main() {
	flag.Parse()
	err := outside
	switch {
	case *inside && os.Getpid() == 1:
		err = first
	case *inside:
		err = measure
	}
	if err := err(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// measure runs the parts and writes the table.
func measure() (err error) {
	defer func() {
		if r, ok := recover().(failed); ok {
			err = r.err
		}
	}()
	check(unpack(os.NewFile(3, "berth"), berthBin))
	check(unpack(os.NewFile(4, "berth-cni"), pluginBin))
	load := loadAverage()
	var rows []row
	last := len(parts) - 1
	for _, p := range slices.Concat(parts[1:last], parts[:1], parts[last:]) {
		if !strings.Contains(p.name, *only) {
			continue
		}
		start := time.Now()
		got := p.run()
		if p.name == parts[0].name {
			rows = append(got, rows...)
		} else {
			rows = append(rows, got...)
		}
		fmt.Fprintf(os.Stderr, "%s: %.0f s\n", p.name, time.Since(start).Seconds())
	}
	text := render(rows, load)
	fmt.Print(text)
	if *out != "" {
		return os.WriteFile(*out, []byte(text), 0o644)
	}
	return nil
}

func unpack(from *os.File, to string) error {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close(), from.Close())
}

// outside builds the programs and starts this program again in namespaces of its own.
func outside() error {
	if os.Geteuid() != 0 {
		return errors.New("run it as root: it makes network namespaces")
	}
	bins, err := build()
	if err != nil {
		return err
	}
	// Pdeathsig follows the thread, not the process.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe", append([]string{"-inside"}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = bins
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	// An interrupt reaches the child too, and everything of the child ends with
	// it. It is caught, not ignored: the child would ignore it as well.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	return cmd.Run()
}

// build builds the programs into files without a name, so that nothing is left
// whatever ends this process. They are open until then.
func build() (bins []*os.File, err error) {
	dir := filepath.Dir(*program)
	if *program == "" {
		if dir, err = os.MkdirTemp("", "berth-bench-"); err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		cmd := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "berth/cmd/berth", "berth/cmd/berth-cni")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as make builds them
		if b, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build berth: %w: %s", err, b)
		}
	}
	for _, path := range []string{cmp.Or(*program, dir+"/berth"), dir + "/berth-cni"} {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		bins = append(bins, f)
	}
	return bins, nil
}

// failed is what check panics with: a benchmark that cannot go on has one way
// out.
type failed struct{ err error }

func check(err error) {
	if err != nil {
		panic(failed{err})
	}
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

// rounds counts to n, or to few when only trying; on a slow machine not longer
// than its time, but never to so few that nothing can be said.
func rounds(n int) iter.Seq[int] {
	least, most := 8, 40*time.Second
	if *quick {
		n, least, most = max(4, n/8), 4, 10*time.Second
	}
	return func(yield func(int) bool) {
		for i, start := 0, time.Now(); i < n && (i < least || time.Since(start) < most); i++ {
			if !yield(i) {
				return
			}
		}
	}
}

// turn runs a and b, in the other order each time, so that a drift of the
// machine's speed meets both alike.
func turn(i int, a, b func()) {
	if i%2 == 1 {
		a, b = b, a
	}
	a()
	b()
}
