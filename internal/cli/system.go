package cli

import (
	"github.com/spf13/cobra"

	"berth/internal/container"
)

func (p *program) system() *cobra.Command {
	cmd := &cobra.Command{
		Use: "system", Short: "What concerns the host as a whole", Example: "  berth system boot",
	}
	cmd.AddCommand(p.boot())
	return cmd
}

func (p *program) boot() *cobra.Command {
	return &cobra.Command{
		Use: "boot", Short: "Start the containers that run after a boot", Args: cobra.NoArgs,
		Long: `Start the containers whose policy is to run after the host has booted, with
their networks and ports: of --restart always all, of unless-stopped and
on-failure those that nobody has stopped. The others that ran have ended with
the host. What runs already stays as it is.

contrib/systemd/berth-boot.service does this at each boot. The answer is the
names of those that were started.`,
		Example: "  berth system boot",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.containers(cmd.Context(), func(s *container.Service) error {
				names, err := s.Boot(cmd.Context())
				for _, n := range names {
					p.say(n)
				}
				return err
			})
		},
	}
}
