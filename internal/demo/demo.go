// Package demo plays the demos of the talk "Docker network without Docker" on
// the real kernel: in a private network and mount namespace that ends with it,
// so that nothing of it is seen on the host.
//
// It runs the program itself for every step, as a user would, and proves every
// step with packets and connections of its own.
package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// An act is one demo.
type act struct {
	name, title string
	play        func(*stage) error
}

var acts = []act{
	{"1", "a bare veth pair between the host and ns1", (*stage).veth},
	{"1.5", "a second veth pair: two pairs are not a network", (*stage).secondVeth},
	{"2", "the two on one bridge, and another tool's FORWARD DROP", (*stage).bridge},
	{"3", "two networks are isolated", (*stage).isolation},
	{"4", "port forwarding, at start and afterwards", (*stage).ports},
}

// options are the flags.
type options struct {
	commands, step, inside bool
}

// Command returns "berth demo".
func Command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use: "demo [1|1.5|2|3|4]…", Short: "Play the demos of the talk, in a private host",
		Long: `Play the demos of the talk "Docker network without Docker" on this machine's
kernel, in network and mount namespaces that are made for it and end with it:
nothing is seen on the host. Every step shows the command and then the proof:
what must and what must not be reached. Exit status 1 if one expectation fails.

It needs root, or a kernel that lets users make user namespaces.`,
		Example:   "  berth demo\n  berth demo --commands 3 4\n  berth demo --step",
		ValidArgs: names(), Args: cobra.OnlyValidArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.inside {
				return play(cmd.Context(), cmd.OutOrStdout(), o, args)
			}
			return isolate(args, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.commands, "commands", false, "show the commands that would do each step by hand")
	f.BoolVar(&o.step, "step", false, "wait for Enter before each step")
	f.BoolVar(&o.inside, "inside", false, "")
	_ = f.MarkHidden("inside")
	return cmd
}

func names() []string {
	var out []string
	for _, a := range acts {
		out = append(out, a.name)
	}
	return out
}

// ErrFailed says that an expectation failed, or that the demo could not be
// played to its end. What there is to say has been printed.
var ErrFailed = errors.New("the demo did not go as it should")

// isolate plays inside namespaces of its own: the program is started again.
func isolate(args []string, o options) error {
	again := []string{"demo", "--inside"}
	if o.commands {
		again = append(again, "--commands")
	}
	if o.step {
		again = append(again, "--step")
	}
	cmd := exec.Command("/proc/self/exe", append(again, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	// The child hears an interrupt of the terminal too; it is the one to end.
	signal.Ignore(os.Interrupt)
	err := cmd.Run()
	var status *exec.ExitError
	switch {
	case errors.As(err, &status):
		return ErrFailed
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL):
		return fmt.Errorf("demo: this kernel lets only root make namespaces: run it with sudo: %w", os.ErrPermission)
	case err != nil:
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

// A stage is where demos are played.
type stage struct {
	ctx         context.Context
	o           options
	w           io.Writer
	in          *bufio.Reader
	color       bool
	met, failed int
	host        *hostKit
}

func play(ctx context.Context, w io.Writer, o options, wanted []string) error {
	s := &stage{ctx: ctx, o: o, w: w, in: bufio.NewReader(os.Stdin)}
	if t, err := os.Stdout.Stat(); err == nil && t.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" {
		s.color = true
	}
	var err error
	if s.host, err = private(); err != nil {
		return fmt.Errorf("demo: make a private host: %w", err)
	}
	if err := s.acts(wanted); err != nil {
		fmt.Fprintln(os.Stderr, "berth:", err)
		return ErrFailed
	}
	if s.failed > 0 {
		fmt.Fprintf(s.w, "\n%s\n", s.paint(red, fmt.Sprintf("%d of %d expectations failed", s.failed, s.failed+s.met)))
		return ErrFailed
	}
	fmt.Fprintf(s.w, "\n%s\n", s.paint(green, fmt.Sprintf("%d expectations met", s.met)))
	return nil
}

// acts plays the wanted demos, all of them if none is named.
func (s *stage) acts(wanted []string) error {
	for _, a := range acts {
		if len(wanted) > 0 && !slices.Contains(wanted, a.name) {
			continue
		}
		s.title("Demo " + a.name + ": " + a.title)
		if err := a.play(s); err != nil {
			return fmt.Errorf("demo %s: %w", a.name, err)
		}
		if err := s.strike(); err != nil {
			return fmt.Errorf("demo %s: clean up: %w", a.name, err)
		}
	}
	return nil
}

const (
	red, green, bold, dim = "31", "32", "1", "2"
)

func (s *stage) paint(color, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

func (s *stage) title(text string) {
	fmt.Fprintf(s.w, "\n%s\n", s.paint(bold, "=== "+text))
}

func (s *stage) say(format string, args ...any) {
	fmt.Fprintf(s.w, "\n%s\n", fmt.Sprintf(format, args...))
}

// show prints what a person would type, and waits where a speaker wants it.
func (s *stage) show(where, command string) {
	prompt := "$ "
	if where != "" {
		prompt = where + "$ "
	}
	fmt.Fprintf(s.w, "%s", s.paint(bold, prompt+command))
	if s.o.step {
		_, _ = s.in.ReadString('\n')
		return
	}
	fmt.Fprintln(s.w)
}

// berth runs a command of Berth and prints its answer.
func (s *stage) berth(args ...string) (string, error) {
	var quoted []string
	for _, a := range args {
		if strings.ContainsAny(a, " {}'\"") {
			a = "'" + a + "'"
		}
		quoted = append(quoted, a)
	}
	s.show("", "berth "+strings.Join(quoted, " "))
	if s.o.commands && changes(args) {
		args = append(args[:len(args):len(args)], "--commands")
	}
	cmd := exec.CommandContext(s.ctx, "/proc/self/exe", args...)
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		fmt.Fprintln(s.w, "    "+s.paint(dim, strings.TrimRight(line, "\n")))
	}
	return strings.TrimSpace(string(out)), err
}

// changes reports whether a command takes --commands.
func changes(args []string) bool {
	words := strings.Join(args[:min(2, len(args))], " ")
	for _, w := range []string{"ls", "inspect", "check", "port", "exec"} {
		if strings.HasSuffix(words, " "+w) || strings.HasPrefix(words, w) {
			return false
		}
	}
	return true
}

// must runs commands that have to succeed.
func (s *stage) must(commands ...[]string) error {
	for _, c := range commands {
		if out, err := s.berth(c...); err != nil {
			return fmt.Errorf("berth %s: %w: %s", strings.Join(c, " "), err, out)
		}
	}
	return nil
}

// expect records whether something is as it should be.
func (s *stage) expect(ok bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if ok {
		s.met++
		fmt.Fprintf(s.w, "  %s %s\n", s.paint(green, s.mark("✓", "ok  ")), text)
		return
	}
	s.failed++
	fmt.Fprintf(s.w, "  %s %s\n", s.paint(red, s.mark("✗", "FAIL")), text)
}

func (s *stage) mark(pretty, plain string) string {
	if s.color {
		return pretty
	}
	return plain
}

func words(s string) []string { return strings.Fields(s) }
