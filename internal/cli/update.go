package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth"
	"berth/internal/container"
)

func (p *program) update() *cobra.Command {
	var f updateFlags
	cmd := p.verb("update", "Change the limits of containers, while they run too",
		"berth update --memory 256m --cpus 0.5 web\n  berth update --restart always web",
		func(ctx context.Context, s *container.Service, ref string) error {
			return s.Update(ctx, ref, f.change)
		})
	cmd.Long = `Change limits of containers, and when they are started again. What runs has the
new limits at once; what is not typed stays, and 0 takes a limit away. If the
kernel refuses, all is as it was.

A limit of memory below what is used is refused with cgroup v1; with v2 the
kernel ends processes of the container until the rest fits.`
	f.flags(cmd)
	cmd.PreRunE = func(*cobra.Command, []string) error {
		some := false
		cmd.Flags().Visit(func(f *pflag.Flag) { some = some || cmd.InheritedFlags().Lookup(f.Name) == nil })
		if !some {
			return usage(errors.New("update: what is to change? Give a flag"))
		}
		// What cannot be read is no matter of any container.
		return usage(f.change(new(berth.Container)))
	}
	return cmd
}

// change puts what was typed into a container's record.
func (u *updateFlags) change(c *berth.Container) error {
	if err := u.apply(&c.Limits); err != nil {
		return err
	}
	if !u.typed("restart") {
		return nil
	}
	var err error
	c.Restart, err = parseRestart(u.restart)
	return err
}
