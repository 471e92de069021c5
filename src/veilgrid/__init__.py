"""veilgrid: plan and settle distributed energy resources together without handing over data."""
