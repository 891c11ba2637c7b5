// Package demo plays the demos of the talk "Docker network without Docker" on
// the real kernel: in a private network and mount namespace that ends with it,
// so that nothing of it is seen on the host. Where there are containers in it, it
// has a pid namespace and a control group of its own too: they end with it,
// however it ends.
//
// It runs the program itself for every step, as a user would, and proves every
// step with packets and connections of its own.
package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
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
	{"0", "a container is a process in namespaces of its own, with limits", (*stage).box},
	{"1", "a bare veth pair between the host and ns1", (*stage).veth},
	{"1.5", "a second veth pair: two pairs are not a network", (*stage).secondVeth},
	{"2", "the two on one bridge, and another tool's FORWARD DROP", (*stage).bridge},
	{"3", "two networks are isolated", halves((*stage).isolation, (*stage).isolationOfContainers)},
	{"4", "port forwarding, at start and afterwards", halves((*stage).ports, (*stage).portsOfContainers)},
}

// options are the flags.
type options struct {
	commands, step bool
	// inside names the namespaces that the demo was started from: it says that
	// it should be in others now.
	inside string
	// group is the control group for the demo's containers; "": it plays none,
	// for what lacks says.
	group, lacks string
	// first says that it is the first process of its pid namespace, and joined
	// that it is in the group.
	first, joined bool
	// serve is an address to serve the page at.
	serve string
}

// Command returns "berth demo".
func Command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use: "demo [0|1|1.5|2|3|4]…", Short: "Play the demos of the talk, in a private host",
		Long: `Play the demos of the talk "Docker network without Docker" on this machine's
kernel, in namespaces and a control group that are made for it and end with it:
nothing of it is left on the host. Every step shows the command and then the
proof: what must and what must not be reached. Exit status 1 if one expectation
fails.

Berth's commands are run as they are shown. What others would do (ping, nc,
curl, ip, nft, iptables) the program does by itself: none of them is needed.

It needs root, or a kernel that lets users make user namespaces. Containers are
played by root, with a runtime (crun, runc) and conmon; without, they are left
out.`,
		Example:   "  berth demo\n  berth demo --commands 3 4\n  berth demo --step",
		ValidArgs: names(), Args: cobra.OnlyValidArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.serve != "":
				return serve(cmd.Context(), o.serve)
			case o.first:
				return first(cmd.Context(), args, o)
			case o.inside != "":
				return perform(cmd.Context(), cmd.OutOrStdout(), o, args)
			}
			return isolate(cmd.Context(), args, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.commands, "commands", false, "show the commands that would do each step by hand")
	f.BoolVar(&o.step, "step", false, "wait for Enter before each step")
	f.StringVar(&o.inside, insideFlag, "", "")
	f.StringVar(&o.group, "group", "", "")
	f.StringVar(&o.lacks, "lacks", "", "")
	f.BoolVar(&o.first, "first", false, "")
	f.BoolVar(&o.joined, "joined", false, "")
	f.StringVar(&o.serve, serveFlag, "", "")
	for _, name := range []string{insideFlag, "group", "lacks", "first", "joined", serveFlag} {
		_ = f.MarkHidden(name)
	}
	return cmd
}

const insideFlag, serveFlag = "inside", "serve"

// words are the command line of a demo with these options.
func (o options) words(args []string) []string {
	words := []string{"demo", "--" + insideFlag + "=" + o.inside, "--group=" + o.group, "--lacks=" + o.lacks}
	for flag, on := range map[string]bool{"commands": o.commands, "step": o.step, "first": o.first, "joined": o.joined} {
		if on {
			words = append(words, "--"+flag)
		}
	}
	return append(words, args...)
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
// When it ends, by any means, the kernel takes the namespaces away.
func isolate(ctx context.Context, args []string, o options) error {
	own, err := namespaces()
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	o.inside = own
	err = unix.EPERM
	if os.Geteuid() == 0 {
		if o.lacks = lacking(); o.lacks != "" {
			err = run(private(ctx, o.words(args), false))
		} else {
			err = apart(ctx, args, o)
		}
	}
	// A user, or a root without rights, may do it in a user namespace.
	if errors.Is(err, unix.EPERM) {
		o.group, o.lacks = "", "root is needed"
		err = run(private(ctx, o.words(args), true))
	}
	var status *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return errors.New("demo: interrupted")
	case errors.As(err, &status) && (status.Exited() || signalOf(status) == unix.SIGPIPE): // "| head" has seen enough
		return ErrFailed
	case forbidden(err):
		return errNotAllowed
	case err != nil:
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

func signalOf(e *exec.ExitError) syscall.Signal {
	if w, ok := e.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return w.Signal()
	}
	return 0
}

// errNotAllowed is all that a user is told where the kernel allows users
// nothing.
var errNotAllowed = errors.New("demo: on this machine only root may make a private host: run it with sudo")

// forbidden reports whether an error is how a kernel refuses namespaces: by
// rights or AppArmor (EPERM, EACCES), user.max_user_namespaces (ENOSPC), or
// because it has none (EINVAL).
func forbidden(err error) bool {
	for _, e := range []error{unix.EPERM, unix.EACCES, unix.ENOSPC, unix.EINVAL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func private(ctx context.Context, args []string, user bool) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if user {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return cmd
}

// run runs a command that does not outlive this process.
func run(cmd *exec.Cmd) error {
	// PR_SET_PDEATHSIG follows the thread that started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return cmd.Run()
}

// namespaces names the namespaces of this process that the demo replaces.
func namespaces() (string, error) {
	net, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return "", err
	}
	mnt, err := os.Readlink("/proc/self/ns/mnt")
	return net + "," + mnt, err
}
