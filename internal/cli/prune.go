package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
	"berth/internal/container"
)

func (p *program) prune() *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove all containers that do not run", Args: cobra.NoArgs,
		Example: "  berth prune\n  berth prune --filter label=ci",
		RunE: func(cmd *cobra.Command, _ []string) error {
			match, err := containerFilters.compile(f.filters)
			if err != nil {
				return err
			}
			return p.wired(cmd.Context(), func(e *engine.Engine, s *container.Service) error {
				all, err := details(cmd.Context(), e, s, nil)
				if err != nil {
					return err
				}
				var errs []error
				var gone []string
				var freed int64
				for _, c := range all {
					if c.runs() || !match(c) {
						continue
					}
					// One that was started since is in use, and stays.
					n, err := s.Prune(cmd.Context(), c.ID)
					switch {
					case err == nil:
						gone, freed = append(gone, c.ID), freed+n
					case !errors.Is(err, berth.ErrInUse) && !errors.Is(err, berth.ErrNotFound):
						errs = append(errs, err)
					}
				}
				if len(gone) > 0 {
					p.say("Deleted Containers:")
					for _, id := range gone {
						p.say(id)
					}
					p.say("")
				}
				p.say(fmt.Sprint("Total reclaimed space: ", decimal(freed)))
				return errors.Join(errs...)
			})
		},
	}
	f.flags(cmd)
	return cmd
}

func (p *program) diff() *cobra.Command {
	return &cobra.Command{
		Use: "diff CONTAINER", Short: "List what a container of --rootfs host has changed", Args: cobra.ExactArgs(1),
		Long: `List what a container of --rootfs host has changed of the files that it sees: A
was added, C changed, D deleted. One of --rootfs DIR writes into DIR itself, and
there is nothing to compare it with.`,
		Example: "  berth diff job", ValidArgsFunction: p.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.containers(cmd.Context(), func(s *container.Service) error {
				changes, err := s.Diff(cmd.Context(), args[0])
				for _, c := range changes {
					p.say(fmt.Sprintf("%c %s", c.Kind, c.Path))
				}
				return err
			})
		},
	}
}
