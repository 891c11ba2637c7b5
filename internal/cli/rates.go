package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
	"berth/internal/container"
)

// rateFlags are the flags about limits, as they are typed; "" is not typed.
type rateFlags struct{ in, out, burst string }

func (r *rateFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&r.in, "rate-in", "", "at most so many bits each second into the sandbox, as `10mbit`")
	f.StringVar(&r.out, "rate-out", "", "at most so many bits each second out of the sandbox, as `5mbit`")
	f.StringVar(&r.burst, "burst", "", "how much may pass at once after a pause, as `256kb` (default: 10 ms of the rate, at least 32kb)")
	for _, name := range []string{"rate-in", "rate-out", "burst"} {
		completeFlag(cmd, name, cobra.NoFileCompletions)
	}
}

func (r *rateFlags) change() (berth.RateChange, error) {
	var c berth.RateChange
	for _, f := range []struct {
		flag, word string
		parse      func(string) (uint64, error)
		to         **uint64
	}{{"rate-in", r.in, berth.ParseRate, &c.In}, {"rate-out", r.out, berth.ParseRate, &c.Out}, {"burst", r.burst, berth.ParseBurst, &c.Burst}} {
		if f.word == "" {
			continue
		}
		bits, err := f.parse(f.word)
		if err != nil {
			return c, fmt.Errorf("--%s: %w", f.flag, err)
		}
		*f.to = &bits
	}
	return c, nil
}

// rates are the limits of what is connected anew.
func (r *rateFlags) rates() (berth.Rates, error) {
	c, err := r.change()
	if err != nil {
		return berth.Rates{}, err
	}
	return c.Of(berth.Rates{})
}

func (p *program) networkUpdate() *cobra.Command {
	var r rateFlags
	var dev string
	cmd := &cobra.Command{
		Use: "update NETWORK SANDBOX", Short: "Change the limits of a connection while it is in use", Args: cobra.ExactArgs(2),
		Long: `Change how much may pass between a sandbox and a network, each second. What is
not typed stays; a rate of 0 takes the limit away. Connections go on, and what
waits in a queue is not lost.

The limit stands at the host's end, out of the sandbox's hands, and counts
whole frames of Ethernet. Between the bursts, TCP fills it to within a few
percent.`,
		Example:           "  berth network update front web --rate-in 20mbit\n  berth network update front web --rate-in 0 --rate-out 0",
		ValidArgsFunction: p.completeConnected,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := r.change()
			if err != nil {
				return usage(err)
			}
			if c.Empty() {
				return usage(errors.New("network update: what is to change? Give --rate-in, --rate-out or --burst"))
			}
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				return p.updateOne(cmd.Context(), e, args[0], args[1], engine.UpdateOptions{Interface: dev, Rates: c})
			})
		},
	}
	r.flags(cmd)
	cmd.Flags().StringVar(&dev, "interface", "", "the endpoint with this `name` inside, if there are several on the network")
	completeFlag(cmd, "interface", cobra.NoFileCompletions)
	return p.changing(cmd)
}

// updateOne changes an endpoint of a sandbox, or of a container, which is to
// keep it over a restart.
func (p *program) updateOne(ctx context.Context, e *engine.Engine, network, ref string, o engine.UpdateOptions) error {
	wished, err := p.wish(ctx, e, ref, func(s *container.Service, id string) error {
		return s.UpdateNetwork(ctx, id, network, o.Interface, o.Rates)
	})
	if wished || err != nil {
		return err
	}
	_, err = e.UpdateEndpoint(ctx, network, ref, o)
	return err
}

// ratesJSON are the limits of an endpoint as inspect shows them.
type ratesJSON struct {
	RateIn   string `json:",omitempty"`
	RateOut  string `json:",omitempty"`
	BurstIn  string `json:",omitempty"`
	BurstOut string `json:",omitempty"`
}

func ratesAsJSON(r berth.Rates) (j ratesJSON) {
	text := func(bits uint64, format func(uint64) string) string {
		if bits == 0 {
			return ""
		}
		return format(bits)
	}
	j.RateIn, j.RateOut = text(r.In.Bits, berth.FormatRate), text(r.Out.Bits, berth.FormatRate)
	j.BurstIn, j.BurstOut = text(r.In.Burst, berth.FormatBurst), text(r.Out.Burst, berth.FormatBurst)
	return j
}

// set takes a key of --network, if it is one about limits.
func (r *rateFlags) set(key, value string) bool {
	to, ok := map[string]*string{"rate-in": &r.in, "rate-out": &r.out, "burst": &r.burst}[strings.ToLower(key)]
	if ok {
		*to = value
	}
	return ok
}
