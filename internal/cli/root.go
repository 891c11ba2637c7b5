// Package cli is the command line of Berth. It has no logic of its own: each
// command turns flags into a call of the engine and its answer into text.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
	"berth/internal/demo"
)

// Exit statuses, documented in the manual.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// Main runs the command line and returns its exit status.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := Root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	return report(os.Stderr, err)
}

// An exit is an error with an exit status of its own. Its error may be nil:
// then all has been said.
type exit struct {
	status int
	err    error
}

func (e *exit) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

func usage(err error) error {
	if err == nil {
		return nil
	}
	return &exit{exitUsage, err}
}

// hints say what to do about a kind of error.
var hints = []struct {
	is   error
	hint string
}{
	{os.ErrPermission, "berth needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN): run it with sudo"},
	{berth.ErrDrifted, "somebody else changes what is Berth's: 'berth check' shows what, 'berth reconcile' mends it"},
	{berth.ErrUnsupported, "'berth info' shows what this kernel has"},
}

// report prints an error in one line, and what to do about it, and returns the
// exit status.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	status := exitFailed
	var e *exit
	if errors.As(err, &e) {
		if status = e.status; e.err == nil {
			return status
		}
	}
	if errors.Is(err, demo.ErrFailed) {
		return exitFailed // it has said why
	}
	fmt.Fprintf(w, "berth: %s\n", strings.Join(strings.Fields(err.Error()), " "))
	for _, h := range hints {
		if errors.Is(err, h.is) {
			fmt.Fprintf(w, "hint: %s\n", h.hint)
			break
		}
	}
	if status == exitUsage {
		fmt.Fprintln(w, "hint: 'berth --help' and 'berth COMMAND --help' show how it is used")
	}
	return status
}

// A program is what the commands of one run share.
type program struct {
	root, run, config string
	debug             bool
	dryRun, commands  bool
	out, err          io.Writer
}

// Root returns the whole command line.
func Root() *cobra.Command {
	p := &program{}
	root := &cobra.Command{
		Use:   "berth",
		Short: "Docker-class networks for any process, without Docker",
		Long: `Berth connects network namespaces to networks: bridges, addresses, NAT,
isolation and published ports, by the kernel alone. Nothing runs when a
command has ended.

A sandbox is named by its own name, by a name in /run/netns, by path:PATH, or
by pid:N.

Exit status: 0 done, 1 failed (check: something differs), 2 wrong usage;
exec: 125 Berth failed, 126 not executable, 127 not found, else the command's.

Environment: BERTH_ROOT, BERTH_RUN, BERTH_CONFIG for --root, --run, --config.`,
		Example: `  berth network create front
  berth sandbox create web
  berth network connect front web
  berth publish web 8888:80`,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) { p.out, p.err = cmd.OutOrStdout(), cmd.ErrOrStderr() },
	}
	f := root.PersistentFlags()
	f.StringVar(&p.root, "root", env("BERTH_ROOT", "/var/lib/berth"), "directory of what outlives a reboot")
	f.StringVar(&p.run, "run", env("BERTH_RUN", "/run/berth"), "directory of what does not")
	f.StringVar(&p.config, "config", env("BERTH_CONFIG", "/etc/berth/config.json"), "configuration file")
	f.BoolVar(&p.debug, "debug", false, "tell on stderr what is done")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.AddCommand(p.network(), p.sandbox(), p.publish(), p.unpublish(), p.port(), p.check(), p.reconcile(), p.info(), p.version(), demo.Command(), p.manual())
	usageErrors(root)
	return root
}

// usageErrors gives wrong arguments the exit status of wrong usage.
func usageErrors(cmd *cobra.Command) {
	if args := cmd.Args; args != nil {
		cmd.Args = func(c *cobra.Command, a []string) error {
			if err := args(c, a); err != nil {
				return usage(fmt.Errorf("%s: %w", c.CommandPath(), err))
			}
			return nil
		}
	} else if !cmd.HasParent() || cmd.HasSubCommands() {
		cmd.Args = func(c *cobra.Command, a []string) error {
			if len(a) > 0 {
				return usage(fmt.Errorf("no command %q for %q", a[0], c.CommandPath()))
			}
			return nil
		}
		if cmd.RunE == nil && cmd.Run == nil {
			cmd.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
	}
	for _, c := range cmd.Commands() {
		usageErrors(c)
	}
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// changing adds the flags of a command that changes something.
func (p *program) changing(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&p.dryRun, "dry-run", false, "print the commands that would do it by hand, and do nothing")
	cmd.Flags().BoolVar(&p.commands, "commands", false, "print the commands that would do it by hand, and do it")
	return cmd
}

// open opens the engine as the flags say.
func (p *program) open(ctx context.Context) (*engine.Engine, error) {
	o := engine.Options{Root: p.root, Run: p.run, DryRun: p.dryRun, Notice: func(s string) { fmt.Fprintln(p.err, "note: "+s) }}
	if p.dryRun || p.commands {
		o.Commands = func(script string) { fmt.Fprint(p.out, script) }
	}
	if p.debug {
		o.Log = slog.New(slog.NewTextHandler(p.err, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var err error
	if o.Pools, err = readConfig(p.config); err != nil {
		return nil, err
	}
	e, err := engine.Open(ctx, o)
	if err != nil && os.Geteuid() != 0 && !errors.Is(err, os.ErrPermission) {
		err = errors.Join(err, os.ErrPermission)
	}
	return e, err
}

// with opens the engine for the length of fn.
func (p *program) with(ctx context.Context, fn func(*engine.Engine) error) error {
	e, err := p.open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(fn(e), e.Close())
}

// say prints an answer, which a dry run has not.
func (p *program) say(lines ...string) {
	if p.dryRun {
		return
	}
	for _, l := range lines {
		fmt.Fprintln(p.out, l)
	}
}

// A config is the configuration file.
type config struct {
	Pools []struct {
		Base netip.Prefix `json:"base"`
		Size int          `json:"size"`
	} `json:"pools"`
}

// readConfig reads the configuration file; that it is not there is no error.
func readConfig(path string) ([]engine.Pool, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	var c config
	if err := d.Decode(&c); err != nil {
		return nil, fmt.Errorf("read %s: %w: it looks like {\"pools\": [{\"base\": \"10.0.0.0/8\", \"size\": 24}]}", path, err)
	}
	var out []engine.Pool
	for _, p := range c.Pools {
		if !p.Base.IsValid() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
			return nil, fmt.Errorf("read %s: pool %s cut to /%d: the size must be from %d to %d", path, p.Base, p.Size, p.Base.Bits(), p.Base.Addr().BitLen())
		}
		out = append(out, engine.Pool{Base: p.Base.Masked(), Size: p.Size})
	}
	return out, nil
}
