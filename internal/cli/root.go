// Package cli is the command line of Berth. It has no logic of its own: each
// command turns flags into a call of the engine and its answer into text.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"berth/engine"
	"berth/internal/demo"
)

// Main runs the command line and returns its exit status.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	out := &answer{w: os.Stdout}
	root := Root()
	root.SetArgs(args)
	root.SetOut(out)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil && out.err != nil {
		err = fmt.Errorf("print the answer: %w", out.err)
	}
	return report(os.Stderr, cmd, err)
}

// An answer is standard output. It keeps the first error: an answer that was
// not read, on a full disk, is a failure.
type answer struct {
	w   io.Writer
	err error
}

func (a *answer) Write(b []byte) (int, error) {
	n, err := a.w.Write(b)
	a.err = cmp.Or(a.err, err)
	return n, err
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
	p := &program{out: os.Stdout, err: os.Stderr}
	root := &cobra.Command{
		Use:   "berth",
		Short: "Docker-class networks for any process, without Docker",
		Long: `Berth connects network namespaces to networks: bridges, addresses, NAT,
isolation and published ports, by the kernel alone. Nothing runs when a
command has ended.

A sandbox is named by its own name, by a name in /run/netns, by path:PATH, or
by pid:N.

Exit status: 0 done; 1 failed (of "check": something differs); 2 wrong usage.
Of "sandbox exec": 125 Berth failed, 126 the command cannot be run, 127 it was
not found, else the command's own.

Environment: BERTH_ROOT, BERTH_RUN and BERTH_CONFIG stand for --root, --run and
--config.

Configuration: {"pools": [{"base": "10.0.0.0/8", "size": 24}]} says where
subnets come from, in place of Docker's pools; "registry-mirrors": [HOST, …] are
asked for what is on Docker Hub, and "insecure-registries": [HOST, …] may speak
plain http or have a certificate that nobody vouches for.`,
		Example: `  berth network create front
  berth sandbox create web
  berth network connect front web
  berth publish web 8888:80`,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) { p.out, p.err = cmd.OutOrStdout(), cmd.ErrOrStderr() },
	}
	f := root.PersistentFlags()
	f.StringVar(&p.root, "root", "", "`directory` of what outlives a reboot (default /var/lib/berth)")
	f.StringVar(&p.run, "run", "", "`directory` of what does not (default /run/berth)")
	f.StringVar(&p.config, "config", "", "configuration `file` (default "+defaultConfig+", if it is there)")
	f.BoolVar(&p.debug, "debug", false, "tell on stderr what is done")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(flagError(err)) })
	root.SetUsageTemplate(usageTemplate)
	root.Version = thisBuild().String() // for --version, which Docker has
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(p.network(), p.sandbox(), p.publish(), p.unpublish(), p.port(), p.check(), p.reconcile(), p.info(), p.cni(), p.version(), demo.Command())
	root.AddCommand(p.containerCommands()...)
	root.AddCommand(p.imageCommands()...)
	arguments(root)
	return root
}

// usageTemplate is cobra's, with the example where the eye ends up.
const usageTemplate = `Usage:
  {{if .HasAvailableSubCommands}}{{.CommandPath}} COMMAND{{else}}{{.UseLine}}{{end}}{{if .Aliases}}

Aliases:
  {{.NameAndAliases}}{{end}}{{if .HasAvailableSubCommands}}

Commands:{{range .Commands}}{{if or .IsAvailableCommand (eq .Name "help")}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Global flags:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}
`

// changing adds the flags of a command that changes something.
func (p *program) changing(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&p.dryRun, "dry-run", false, "print the commands that would do it by hand, and do nothing")
	cmd.Flags().BoolVar(&p.commands, "commands", false, "print the commands that would do it by hand, then do it and answer")
	return cmd
}

// open opens the engine as the flags say.
func (p *program) open(ctx context.Context) (*engine.Engine, error) {
	o := engine.Options{
		Root: cmp.Or(p.root, os.Getenv("BERTH_ROOT")), Run: cmp.Or(p.run, os.Getenv("BERTH_RUN")),
		DryRun: p.dryRun, Notice: p.note,
	}
	if p.dryRun || p.commands {
		o.Commands = func(script string) { fmt.Fprint(p.out, script) }
	}
	if p.debug {
		o.Log = slog.New(slog.NewTextHandler(p.err, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	c, err := readConfig(cmp.Or(p.config, os.Getenv("BERTH_CONFIG")))
	if err != nil {
		return nil, err
	}
	o.Pools = c.pools()
	return engine.Open(ctx, o)
}

// each does something to every word, and returns what failed of it.
func each(words []string, do func(string) error) error {
	errs := make([]error, len(words))
	for i, w := range words {
		errs[i] = do(w)
	}
	return errors.Join(errs...)
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
func (p *program) say(line string) {
	if !p.dryRun {
		fmt.Fprintln(p.out, line)
	}
}

// note tells what is no answer and no error.
func (p *program) note(text string) { fmt.Fprintln(p.err, "note: "+oneLine(text)) }
