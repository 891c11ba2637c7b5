package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth/engine"
)

// Exit statuses of exec, those of Docker.
const (
	exitBerth     = 125
	exitCannotRun = 126
	exitNotFound  = 127
)

// netnsDir is where ip-netns(8) looks for names.
const netnsDir = "/run/netns"

func (p *program) exec() *cobra.Command {
	cmd := &cobra.Command{
		Use: "exec SANDBOX COMMAND [ARGUMENT…]", Short: "Run a command inside a sandbox",
		Long: `Run a command inside a sandbox's network namespace, with /sys and the files of
/etc/netns/SANDBOX as ip-netns(8) shows them. Terminal, signals and exit status
are the command's own, which takes the place of this process.

Exit status: 125 Berth failed, 126 the command cannot be run, 127 it was not
found, else the command's own.`,
		Args: func(cmd *cobra.Command, args []string) error {
			return failExec(cobra.MinimumNArgs(2)(cmd, args))
		},
		Example:           "  berth sandbox exec web ip addr\n  berth sandbox exec pid:4711 sh",
		ValidArgsFunction: p.completeExec,
		RunE: func(cmd *cobra.Command, args []string) error {
			var ns *os.File
			var d engine.SandboxDetail
			// The engine is closed before the command takes the process over.
			err := p.with(cmd.Context(), func(e *engine.Engine) (err error) {
				if d, err = e.InspectSandbox(cmd.Context(), args[0]); err != nil {
					return err
				}
				ns, err = e.Enter(cmd.Context(), args[0])
				return err
			})
			if err != nil {
				return failExec(err)
			}
			return p.execIn(ns, d.Path, args[1:])
		},
	}
	cmd.Flags().BoolP("interactive", "i", false, "as Docker's: standard input is the command's anyway")
	cmd.Flags().BoolP("tty", "t", false, "as Docker's: the terminal is the command's anyway")
	cmd.Flags().SetInterspersed(false)
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return failExec(err) })
	return cmd
}

// failExec says that it was not the command that failed.
func failExec(err error) error {
	if err == nil {
		return nil
	}
	return &exit{exitBerth, err}
}

// execIn replaces the process by a command inside a network namespace.
func (p *program) execIn(ns *os.File, path string, command []string) error {
	// Never unlocked: execve takes the thread's namespaces along.
	runtime.LockOSThread()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return failExec(os.NewSyscallError("setns", err))
	}
	if err := p.ownMounts(path); err != nil {
		return failExec(err)
	}
	err := execvp(command)
	status := exitCannotRun
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		status = exitNotFound
	}
	return &exit{status, fmt.Errorf("exec %s: %w", command[0], err)}
}

// execvp looks a command up in PATH as execvp(3) does: the first that can be
// run is run, and one that is there but may not be run is told of if no other
// is found.
func execvp(command []string) error {
	if strings.Contains(command[0], "/") {
		return unix.Exec(command[0], command, os.Environ())
	}
	last := error(unix.ENOENT)
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		err := unix.Exec(filepath.Join(dir, command[0]), command, os.Environ())
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		case errors.Is(err, unix.EACCES):
			last = err
		default:
			return err
		}
	}
	return last
}

// ownMounts gives the thread a mount namespace of its own in which /sys shows
// the links of its network namespace, and the files of /etc/netns/NAME lie over
// those of /etc.
func (p *program) ownMounts(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	// What is mounted outside later is still seen, but nothing of ours is.
	if err := unix.Mount("", "/", "none", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	if err := ownSys(); err != nil {
		return err
	}
	name, named := strings.CutPrefix(path, netnsDir+"/")
	if !named {
		return nil
	}
	over := filepath.Join("/etc/netns", name)
	entries, err := os.ReadDir(over)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		from, to := filepath.Join(over, e.Name()), filepath.Join("/etc", e.Name())
		if err := unix.Mount(from, to, "none", unix.MS_BIND, ""); err != nil {
			p.note(fmt.Sprintf("%s does not lie over %s: %v", from, to, err))
		}
	}
	return nil
}

// ownSys mounts a sysfs that shows the links of the thread's network namespace,
// and keeps the control groups below it.
func ownSys() error {
	const cgroups = "/sys/fs/cgroup"
	tree, err := unix.OpenTree(unix.AT_FDCWD, cgroups, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("open_tree %s: %w", cgroups, err)
	}
	kept := err == nil // else nothing is mounted there
	if kept {
		defer unix.Close(tree)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if !kept {
		return nil
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, cgroups, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount %s: %w", cgroups, err)
	}
	return nil
}
